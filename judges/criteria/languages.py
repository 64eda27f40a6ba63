"""Which language a text is in, by script and function words: enough to check "answer in Hindi", no more.

A language that is not in the table cannot be checked, which is an error and not a verdict.
"""

import re
from collections import Counter

SCRIPTS = {
    "latin": "A-Za-zÀ-ɏḀ-ỿ",
    "cyrillic": "Ѐ-ӿ",
    "greek": "Ͱ-Ͽ",
    "hebrew": "֐-׿",
    "arabic": "؀-ۿݐ-ݿ",
    "devanagari": "ऀ-ॿ",
    "bengali": "ঀ-৿",
    "gurmukhi": "਀-੿",
    "gujarati": "઀-૿",
    "tamil": "஀-௿",
    "telugu": "ఀ-౿",
    "kannada": "ಀ-೿",
    "malayalam": "ഀ-ൿ",
    "thai": "฀-๿",
    "hangul": "가-힯ᄀ-ᇿ",
    "kana": "぀-ヿ",
    "han": "一-鿿",
}
LANGUAGES = {
    "en": ("latin", "the and of to is in that it for with you are this not"),
    "de": ("latin", "der die das und ist nicht ein eine zu mit den von ich auf für"),
    "fr": ("latin", "le la les et est des une dans que pour pas un du qui avec"),
    "es": ("latin", "el la los y es de que en una por con para no las un"),
    "it": ("latin", "il di che è la per non una sono con del della gli questo anche"),
    "pt": ("latin", "o de que é não uma para com os do da em um as mais"),
    "nl": ("latin", "de het een en van is niet dat op met voor zijn ik te"),
    "fi": ("latin", "ja on ei että se hän oli ovat kun mutta myös tai olen joka"),
    "sv": ("latin", "och att det som en är på inte för med jag av den till"),
    "vi": ("latin", "và là của có không được người một cho những này trong với các"),
    "sw": ("latin", "na ya wa kwa ni katika za kuwa hii la si cha watu sana"),
    "tr": ("latin", "ve bir bu için de da ile çok ne olarak daha gibi değil"),
    "pl": ("latin", "i w nie na się jest do że to z jak ale po jego"),
    "ru": ("cyrillic", "и в не на что это как он с по но я вы был"),
    "bg": ("cyrillic", "е да се за от са че ще като което с и това не"),
    "uk": ("cyrillic", "і що це як та не з у до він є але для"),
    "ar": ("arabic", "في من على إلى هذا أن التي هو ما لا عن هذه مع"),
    "fa": ("arabic", "است را که این از در به با برای می آن یک های"),
    "ur": ("arabic", "ہے میں کے اور کی کا سے نہیں ہیں کو یہ پر"),
    "hi": ("devanagari", "है हैं और में के का की को से नहीं यह पर"),
    "mr": ("devanagari", "आहे आणि आहेत मध्ये हे या तो ती नाही एक होते"),
    "ne": ("devanagari", "छ छन् हो र पनि मा गर्न यो भने लागि हुन्छ"),
    "ko": ("hangul", ""),
    "ja": ("kana", ""),
    "zh": ("han", ""),
    "th": ("thai", ""),
    "el": ("greek", ""),
    "he": ("hebrew", ""),
    "bn": ("bengali", ""),
    "pa": ("gurmukhi", ""),
    "gu": ("gujarati", ""),
    "ta": ("tamil", ""),
    "te": ("telugu", ""),
    "kn": ("kannada", ""),
    "ml": ("malayalam", ""),
}


def is_language(text: str, code: str) -> bool:
    """Return whether most of a text's letters are of the language's script and, among the languages of that script, most of
    the function words are its own. Raises ValueError for a language that cannot be checked."""
    if code not in LANGUAGES:
        raise ValueError(f"the language {code!r} cannot be checked; these can: {', '.join(sorted(LANGUAGES))}")
    script = LANGUAGES[code][0]
    letters = {name: len(re.findall(f"[{span}]", text)) for name, span in SCRIPTS.items()}
    if script == "kana":  # Japanese is written with Chinese characters too
        letters["kana"] += letters["han"] * bool(letters["kana"])
    if not letters[script] or letters[script] < max(letters.values()):
        return False
    rivals = {name: set(words.split()) for name, (written_in, words) in LANGUAGES.items() if written_in == script}
    if len(rivals) == 1:
        return True
    found = Counter(re.findall(rf"[{SCRIPTS[script]}]+", text.lower()))
    hits = {name: sum(found[word] for word in words) for name, words in rivals.items()}
    return hits[code] > 0 and hits[code] == max(hits.values())
