"""Language and script codes: ISO 639-3 with ISO 15924, in the style of FLORES-200 (`deu_Latn`).

Two-letter codes and macro-languages stand for the variety that data under them is in: `ar` and
`ara` for Modern Standard Arabic (`arb`), `zh` for Chinese (`zho`, told apart by script). The script
of a text is counted from its letters.
"""

import functools
from collections import Counter

from fontTools import unicodedata

_TWO_LETTERS = """
aa=aar ab=abk ae=ave af=afr ak=aka am=amh an=arg ar=arb as=asm av=ava ay=ayr az=azj ba=bak
be=bel bg=bul bh=bho bi=bis bm=bam bn=ben bo=bod br=bre bs=bos ca=cat ce=che ch=cha co=cos
cr=cre cs=ces cu=chu cv=chv cy=cym da=dan de=deu dv=div dz=dzo ee=ewe el=ell en=eng eo=epo
es=spa et=est eu=eus fa=pes ff=fuv fi=fin fj=fij fo=fao fr=fra fy=fry ga=gle gd=gla gl=glg
gn=grn gu=guj gv=glv ha=hau he=heb hi=hin ho=hmo hr=hrv ht=hat hu=hun hy=hye hz=her ia=ina
id=ind ie=ile ig=ibo ii=iii ik=ipk io=ido is=isl it=ita iu=iku ja=jpn jv=jav ka=kat kg=kon
ki=kik kj=kua kk=kaz kl=kal km=khm kn=kan ko=kor kr=knc ks=kas ku=kmr kv=kom kw=cor ky=kir
la=lat lb=ltz lg=lug li=lim ln=lin lo=lao lt=lit lu=lub lv=lvs mg=plt mh=mah mi=mri mk=mkd
ml=mal mn=khk mr=mar ms=zsm mt=mlt my=mya na=nau nb=nob nd=nde ne=npi ng=ndo nl=nld nn=nno
no=nob nr=nbl nv=nav ny=nya oc=oci oj=oji om=gaz or=ory os=oss pa=pan pi=pli pl=pol ps=pbt
pt=por qu=quy rm=roh rn=run ro=ron ru=rus rw=kin sa=san sc=srd sd=snd se=sme sg=sag sh=hbs
si=sin sk=slk sl=slv sm=smo sn=sna so=som sq=als sr=srp ss=ssw st=sot su=sun sv=swe sw=swh
ta=tam te=tel tg=tgk th=tha ti=tir tk=tuk tl=tgl tn=tsn to=ton tr=tur ts=tso tt=tat tw=twi
ty=tah ug=uig uk=ukr ur=urd uz=uzn ve=ven vi=vie vo=vol wa=wln wo=wol xh=xho yi=ydd yo=yor
za=zha zh=zho zu=zul
"""
ISO_639_3 = dict(entry.split("=") for entry in _TWO_LETTERS.split())

_MACRO = {
    "ara": "arb", "aym": "ayr", "aze": "azj", "cmn": "zho", "ekk": "est", "fas": "pes",
    "ful": "fuv", "kau": "knc",
    "kur": "kmr", "lav": "lvs", "mlg": "plt", "mon": "khk", "msa": "zsm", "nep": "npi",
    "nor": "nob", "ori": "ory", "orm": "gaz", "pus": "pbt", "que": "quy", "sqi": "als",
    "swa": "swh", "uzb": "uzn", "yid": "ydd",
}  # fmt: skip

# Scripts that one language writes almost alone: there the script decides better than any model.
LANGUAGE_OF_SCRIPT = {
    "Armn": "hye", "Cher": "chr", "Geor": "kat", "Grek": "ell", "Gujr": "guj", "Guru": "pan",
    "Hang": "kor", "Jpan": "jpn", "Khmr": "khm", "Knda": "kan", "Laoo": "lao", "Mlym": "mal",
    "Mtei": "mni", "Nkoo": "nqo", "Olck": "sat", "Orya": "ory", "Sinh": "sin", "Taml": "tam",
    "Telu": "tel", "Tfng": "tzm", "Thaa": "div", "Thai": "tha",
}  # fmt: skip

UNKNOWN_LANGUAGE, UNKNOWN_SCRIPT = "und", "Zyyy"
_NO_SCRIPT = frozenset({"Zyyy", "Zinh", "Zzzz"})
# Of Han and kana: Chinese text has none, Japanese text seldom less than a third.
MIXED_HAN_SHARE = 0.05


def standard_language(code: str) -> str:
    """`de`, `deu`, `ara` -> `deu`, `deu`, `arb`; codes that are not known stay as they are."""
    code = code.strip().lower()
    code = ISO_639_3.get(code, code)
    return _MACRO.get(code, code)


def standard_tag(tag: str) -> str:
    """`de`, `pt-BR`, `zh_Hant`, `deu_Latn`, `code` -> `deu`, `por`, `zho_Hant`, `deu_Latn`,
    `code_Zyyy`."""
    if tag == "code":
        return f"code_{UNKNOWN_SCRIPT}"
    language, *rest = tag.replace("-", "_").split("_")
    script = next((part.title() for part in rest if len(part) == 4 and part.isalpha()), "")
    return standard_language(language) + (f"_{script}" if script else "")


@functools.cache
def _script_of(character: str) -> str:
    return unicodedata.script(character)


def script_shares(text: str) -> dict[str, float]:
    """Each script's share of the letters of a text, the largest first; empty when it has none.

    Han and kana together are `Jpan`, Han and Hangul `Hang`; Han alone is `Hans` or `Hant`.
    """
    counts: Counter[str] = Counter()
    for character, times in Counter(text).items():
        if character.isalpha():
            counts[_script_of(character)] += times
    for script in _NO_SCRIPT:
        counts.pop(script, None)
    _merge_han(counts, text)
    total = sum(counts.values())
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return {script: times / total for script, times in ranked}


def _merge_han(counts: Counter[str], text: str) -> None:
    han, kana = counts.pop("Hani", 0), counts.pop("Hira", 0) + counts.pop("Kana", 0)
    if kana and kana >= MIXED_HAN_SHARE * (han + kana):
        counts["Jpan"] += han + kana
    elif counts["Hang"] >= MIXED_HAN_SHARE * (han + counts["Hang"]) and counts["Hang"]:
        counts["Hang"] += han + kana
    elif han:
        counts[_han_variant(text)] += han + kana
    if not counts["Hang"]:
        del counts["Hang"]


def _han_variant(text: str) -> str:
    """`Hans` or `Hant`: by characters that only GB 2312 or only Big5 has; a draw is `Hans`."""
    return "Hant" if sum(map(han_variant_of, text)) > 0 else "Hans"


@functools.cache
def han_variant_of(character: str) -> int:
    """1 for a Han character that only Big5 has, -1 for one that only GB 2312 has, else 0."""
    if _script_of(character) != "Hani":
        return 0
    return _encodes(character, "big5") - _encodes(character, "gb2312")


def _encodes(character: str, encoding: str) -> bool:
    try:
        character.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True
