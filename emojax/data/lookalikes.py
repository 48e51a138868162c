"""What a text looks like, so that no two labels can be taken for one another."""

import re
import unicodedata

# Characters without ink that are no control characters: fillers, the blank of braille, and marks
# that only choose between forms of Mongolian or Khmer letters.
UNSEEN = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\uffa0]")
# Not seen either, but parts of words and pictures: joiners and variation selectors.
_CHOOSING = re.compile("[\u200c\u200d\ufe00-\ufe0f\U000e0100-\U000e01ef]")
# Cyrillic and Greek letters that are drawn as Latin ones. Within each alphabet no two are the same.
_CYRILLIC = dict(zip("АВЕЅІЈКМНОРСТУХаеѕіјорсухԁһӏ", "ABESIJKMHOPCTYXaesijopcyxdhl", strict=True))
_GREEK = dict(zip("ΑΒΕΖΗΙΚΜΝΟΡΤΥΧανορυι", "ABEZHIKMNOPTYXavopui", strict=True))
_LATIN = str.maketrans(_CYRILLIC | _GREEK)


def look(text: str) -> str:
    """Texts that are drawn alike have the same look, which is for comparison only.

    One under Unicode's compatibility normalization (accents in one or two characters, full-width
    and other forms of letters), with single blanks, without what is not seen, and with Latin
    letters for those of other alphabets that are drawn the same.
    """
    if not text.isascii():
        text = unicodedata.normalize("NFKD", UNSEEN.sub("", _CHOOSING.sub("", text)))
        text = text.translate(_LATIN)
    return " ".join(text.split())
