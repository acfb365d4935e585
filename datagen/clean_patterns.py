"""Patterns of texts that say nothing: addresses, unfilled templates, what any site says.

All are of Rust's regex, for whole columns, and rules in `clean_rules` say where they apply. They
are few and strict, in English and in signs: a text that is taken wrongly is lost, one that is
missed is one among many.
"""

URLS = r"^(?:\s*(?:https?://|www\.)\S+)+\s*$"
# What stands for a text that a program should have filled in.
_PLACEHOLDER = (
    r"\{\{[^{}]*\}\}|\$?\{[\w.:\- ]*\}|%(?:\([\w.]+\))?[sdif]|<%[^%]*%>"
    r"|\[(?i:insert|enter|your|add|todo|tbd|placeholder|company|name here)(?-u:\b)[^\[\]]*\]"
    r"|\[object Object\]|#(?:REF|VALUE|NAME|DIV/0|N/A|NULL|NUM)[!?]?"
)
UNFILLED = rf"{_PLACEHOLDER}|(?-u:\b)(?:TODO|TBD|FIXME|NaN|NULL|XXX+)(?-u:\b)"

_SAYINGS = (
    r"lorem ipsum\b.*"
    r"|(?:please )?(?:enable|turn on|activate) (?:javascript|cookies)\b.{0,200}"
    r"|(?:this (?:site|website|page|app) |you(?:r browser)? )?(?:needs?|requires?) "
    r"(?:javascript|cookies)\b.{0,200}"
    r"|javascript (?:is|must be|seems to be) (?:disabled|required|enabled)\b.{0,200}"
    r"|(?:this (?:site|website)|we)(?: and our partners)? uses? cookies\b.{0,600}"
    r"|by (?:continuing|using)\b.{0,80}\bcookies\b.{0,300}"
    r"|(?:copyright|©|\(c\)).{0,120}all rights reserved\W*"
    r"|all rights reserved\W*"
    r"|(?:error )?(?:404|403|500|502|503)(?: error)?\W{0,3}(?:(?:page )?not found|forbidden"
    r"|access denied|internal server error|bad gateway|service unavailable)\b.{0,80}"
    r"|(?:page not found|access denied|forbidden|bad gateway|service unavailable)\W*"
    r"|(?:click here|read more|learn more|show more|see more|load more|subscribe|sign up|log ?in"
    r"|share this|follow us)(?: (?:now|today|to continue|for more|on \w+))?\W*"
)
BOILERPLATE = rf"(?is)^\W*(?:{_SAYINGS})$"
# Menus: short links between bars or arrows, at least four of them, and nothing else.
NAVIGATION = r"^\s*[^|»›•·\n.!?]{1,30}(?:\s*[|»›•·]\s*[^|»›•·\n.!?]{1,30}){3,}\s*$"
