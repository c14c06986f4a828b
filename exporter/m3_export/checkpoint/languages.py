"""Which pieces a language can use, by the characters that it is written with.

A script that few languages write is kept whole: Thai, Hangul, Han. Latin and Cyrillic are written by so many that their
pieces are chosen by letters: of those of German, all that "a" to "z", ä, ö, ü and ß spell. That keeps pieces of Finnish
and Turkish too, wherever they have no other letters; it never drops one that German prose can use. Digits,
punctuation and symbols belong to every language.

The letters are those of each language's standard alphabet. A character's script is the first word of its Unicode name.
"""

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from m3_export.errors import OptionsError
from m3_export.options import words_of_option

WORD_START = "▁"

_LATIN, _CYRILLIC = "LATIN", "CYRILLIC"
_BASES = {_LATIN: "abcdefghijklmnopqrstuvwxyz", _CYRILLIC: "абвгдежзийклмнопрстуфхцчшщъыьэюя"}

_LETTERS: Mapping[str, Mapping[str, str]] = {
    _LATIN: {
        "af": "áâéèêëíîïóôúûý", "az": "çəğıöşü", "br": "âêîñôùûü", "bs": "čćđšž", "ca": "àçèéíïòóúü",
        "cs": "áčďéěíňóřšťúůýž", "cy": "àáâäèéêëìíîïòóôöùúûüŵŷẁẃẅýÿỳ", "da": "åæøé", "de": "äöüß", "en": "",
        "eo": "ĉĝĥĵŝŭ", "es": "áéíñóúü", "et": "äõöüšž", "eu": "ñçü", "fi": "äöåšž", "fr": "àâæçèéêëîïôœùûüÿ",
        "fy": "âêéëïîôúûü", "ga": "áéíóú", "gd": "àèéìòóù", "gl": "áéíïñóúü", "ha": "ɓɗƙƴ", "hr": "čćđšž",
        "hu": "áéíóöőúüű", "id": "é", "is": "áðéíóúýþæö", "it": "àèéìíîòóùú", "jv": "èéê", "ku": "çêîşû",
        "la": "āēīōūæœ", "lt": "ąčęėįšųūž", "lv": "āčēģīķļņšūž", "mg": "àâéèêëìîïñô", "ms": "é",
        "nl": "áçèéêëíïóöúü", "no": "åæøàéèêòóô", "om": "", "pl": "ąćęłńóśźż", "pt": "àáâãçéêíòóôõúü",
        "ro": "ăâîșțşţ", "sk": "áäčďéíĺľňóôŕšťúýž", "sl": "čšžćđ", "so": "", "sq": "çë", "sr": "čćđšž", "su": "èé",
        "sv": "åäöé", "sw": "", "tl": "ñ", "tr": "çğıöşüâîû", "uz": "", "xh": "",
        "vi": "àáâãèéêìíòóôõùúýăđĩũơưạảấầẩẫậắằẳẵặẹẻẽếềểễệỉịọỏốồổỗộớờởỡợụủứừửữựỳỵỷỹ",
    },
    _CYRILLIC: {
        "be": "ёіў", "bg": "ѝ", "kk": "әғқңөұүһіё", "ky": "ёңөү", "mk": "ѓѕјљњќџѐѝ", "mn": "ёөү", "ru": "ё",
        "sr": "ђјљњћџ", "uk": "ґєії",
    },
}  # fmt: skip

_WHOLE_SCRIPTS: Mapping[str, Sequence[str]] = {
    "am": ["ETHIOPIC"], "ar": ["ARABIC"], "as": ["BENGALI"], "bn": ["BENGALI"], "el": ["GREEK"], "fa": ["ARABIC"],
    "gu": ["GUJARATI"], "he": ["HEBREW"], "hi": ["DEVANAGARI"], "hy": ["ARMENIAN"],
    "ja": ["CJK", "HIRAGANA", "KATAKANA"], "ka": ["GEORGIAN"], "km": ["KHMER"], "kn": ["KANNADA"], "ko": ["HANGUL"],
    "lo": ["LAO"], "ml": ["MALAYALAM"], "mr": ["DEVANAGARI"], "my": ["MYANMAR"], "ne": ["DEVANAGARI"],
    "or": ["ORIYA"], "pa": ["GURMUKHI"], "ps": ["ARABIC"], "sa": ["DEVANAGARI"], "sd": ["ARABIC"], "si": ["SINHALA"],
    "ta": ["TAMIL"], "te": ["TELUGU"], "th": ["THAI"], "ug": ["ARABIC"], "ur": ["ARABIC"], "yi": ["HEBREW"],
    "zh": ["CJK", "BOPOMOFO"], "zh-Hant": ["CJK", "BOPOMOFO"],
}  # fmt: skip

# First words of names that are not the script's own.
_OTHER_NAMES = {
    "ARABIC-INDIC": "ARABIC", "EXTENDED": "ARABIC", "IDEOGRAPHIC": "CJK", "KANGXI": "CJK",
    "KATAKANA-HIRAGANA": "KATAKANA", "HALFWIDTH": "KATAKANA",
}  # fmt: skip
_SCRIPTS = frozenset({_LATIN, _CYRILLIC, "TIBETAN", *(name for names in _WHOLE_SCRIPTS.values() for name in names)})


@dataclass(frozen=True)
class Characters:
    """The characters of some languages: `scripts` that are kept whole, and `letters`, in lower case, of others."""

    scripts: frozenset[str]
    letters: frozenset[str]

    @classmethod
    def of(cls, languages: Iterable[str]) -> "Characters":
        """Those of languages of `known_languages`."""
        wanted = list(languages)
        scripts = frozenset(script for language in wanted for script in _WHOLE_SCRIPTS.get(language, ()))
        letters = [
            _BASES[script] + more[language] for script, more in _LETTERS.items() for language in wanted
            if language in more
        ]  # fmt: skip
        return cls(scripts, frozenset("".join(letters)))

    def spell(self, piece: str) -> bool:
        """Whether a piece has no other characters.

        >>> german = Characters.of(["de"])
        >>> german.spell("▁Größe"), german.spell("▁3,5"), german.spell("▁år"), german.spell("год")
        (True, True, False, False)
        """
        return all(
            (script := script_of_character(one)) is None or script in self.scripts or one.lower() in self.letters
            for one in piece
        )

    @property
    def all_scripts(self) -> frozenset[str]:
        """Scripts of which any character is kept."""
        return self.scripts | {script for one in self.letters if (script := script_of_character(one))}


def known_languages() -> list[str]:
    """Codes of all languages whose characters are known."""
    return sorted({*_LETTERS[_LATIN], *_LETTERS[_CYRILLIC], *_WHOLE_SCRIPTS})


def parse_languages(text: str) -> tuple[str, ...]:
    """`zh,en,de` as codes, in order.

    Raises:
        OptionsError: one is not known or named twice, or there is none, or none between two commas.
    """
    known = known_languages()
    in_words = f"known are {', '.join(known)}"
    if not text.replace(",", "").strip():
        raise OptionsError(f"no language is named; {in_words}")
    wanted = words_of_option(text, "language")
    if unknown := [name for name in wanted if name not in known]:
        meant = [code for code in known if code.lower() == unknown[0].lower()]
        remedy = f"write it {meant[0]!r}" if meant else "for any other, give texts in it: --vocabulary-from"
        raise OptionsError(f"the language {unknown[0]!r} is not known; {in_words}; {remedy}")
    return tuple(sorted(wanted))


@lru_cache(1 << 16)
def script_of_character(character: str) -> str | None:
    """The script that a letter, mark or digit belongs to; None for what belongs to all.

    >>> [script_of_character(one) for one in "aж中ー٣7!é"]
    ['LATIN', 'CYRILLIC', 'CJK', 'KATAKANA', 'ARABIC', None, None, 'LATIN']
    """
    if not unicodedata.category(character).startswith(("L", "M", "Nd", "Nl")):
        return None
    word = unicodedata.name(character, "").split(" ")[0]
    script = _OTHER_NAMES.get(word, word)
    return script if script in _SCRIPTS else None


def is_single(piece: str) -> bool:
    """Whether a piece is one character, with or without the start of a word."""
    return len(piece.removeprefix(WORD_START)) <= 1
