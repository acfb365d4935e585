"""How texts sound that speak of their making: refusals, openings of assistants, leaked templates.

In some twenty languages; what may open an ordinary sentence counts only before a colon or comma.
"""

import re

REFUSED = re.compile(
    r"\b(i('| a)m sorry,? but|i (cannot|can't|am unable to) (help|answer|assist|provide|"
    r"fulfil))\b"
    r"|(lo siento|désolée?|tut mir leid|mi dispiace|desculpe|sinto muito|lamento|przepraszam|"
    r"omlouvám|извините|простите|抱歉|对不起|申し訳|죄송|üzgünüm|maaf|عذرا|آسف).{0,30}"
    r"(no puedo|ne (peux|suis pas)|nicht|non posso|não posso|nie mog|nemoh|не могу|无法|不能|"
    r"できません|수 없|yapamam|edemem|tidak (bisa|dapat)|لا أستطيع|لا يمكنني)",
    re.IGNORECASE,
)
# What an assistant says of itself, or before it begins.
_SELF = (
    r"\bas an? (ai|artificial)\b|\blanguage model\b|\bjson (object|format)\b|"
    r"\bals (eine )?(ki|künstliche intelligenz|sprachmodell)\b|sprachmodell|"
    r"\ben tant qu['’]?(ia|intelligence artificielle|assistant)|modèle de langage|"
    r"\bcomo (una? )?(ia|inteligencia artificial)\b|modelo de (lenguaje|linguagem)|"
    r"\bcome (ia|intelligenza artificiale)\b|modello linguistico|językowy model|model językowy|"
    r"языковая модель|как (ии|искусственный интеллект)\b|作为(一个|一名)?(ai|人工智能|语言模型)|"
    r"(ai|言語モデル)として|언어 모델|نموذج لغوي|bir yapay zeka olarak"
)
_OPENING = (
    r"here('s| is| are)\b|(sure|certainly|okay|of course|absolutely)[,!:.]|"
    r"(below|the following) (is|are)\b|hier (ist|sind) (eine?|die|der|das|ihre?|deine?)\b|"
    r"(gerne|natürlich|klar|selbstverständlich)[,!:]|voici\b|bien sûr[ ,!:]|"
    r"aquí (tienes?|está|hay|te|va)\b|(por supuesto|claro|desde luego)[,!:]|aqui está\b|"
    r"(com certeza)[,!:]|ecco (la|il|una?|le|i|a te)\b|certo[,!:]|certamente[,!:]|hier (is|zijn) "
    r"(een|de|het|uw|je)\b|(natuurlijk|zeker)[,!:]|oto [^.!?]{0,60}:|(jasne|oczywiście)[,!:]|"
    r"(zde|tady) je\b|(her er|här är)\b|(вот|ось) [^.!?]{0,60}:|(конечно|звичайно)[,!:]|"
    r"işte [^.!?]{0,60}:|(tabii ki|elbette)[,!:]|以下(是|は|に)|(当然|好的)[，,！!：:]|"
    r"(もちろん|承知)|다음은|물론|إليك|بالطبع|berikut (ini|adalah)\b|tentu[,!:]|dưới đây là"
)
_SPOKEN_ABOUT = (
    r"\bhere (is|are) (a|an|the|some|your)\b|\bsearch query\b|"
    r"\b(this|the (above|following|given)) (document|passage|text|code|query)\b|"
    r"\bthe (document|passage)\b"
)
META_LONG = re.compile(rf"{_SELF}|^\W*({_OPENING})", re.IGNORECASE)
META = re.compile(rf"{_SELF}|^\W*({_OPENING})|{_SPOKEN_ABOUT}", re.IGNORECASE)
LEAK_LONG = re.compile(
    r"\{\{|\}\}|<\||\|>|\[(your|insert|name)\b[^\]]*\]|hard_negative|misleading_label|"
    r"^(query|text|labels?|task|answer|document|positive|negative)\b *:",
    re.IGNORECASE,
)
LEAK = re.compile(
    r"[{}<>\\]|\[[a-z ]+\]|\b\d+ to \d+ words\b|hard_negative|misleading_label"
    r"|^(query|text|labels?|task|answer|document|positive|negative)\b *:"
    r"|\b(without the word|with the label)\b",
    re.IGNORECASE,
)
