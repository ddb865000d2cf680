"""What a painted landscape shows: a few attributes, each one word of its caption."""

from __future__ import annotations

import random
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

# In the order of the caption's words. No word stands for two attributes, so words are understood in any order.
VALUES = {
    "weather": ("clear", "cloudy", "foggy"),
    "time": ("dawn", "noon", "dusk", "night"),
    "ground": ("meadow", "desert", "lake", "snow"),
    "ridges": ("hills", "peaks"),
    "side": ("left", "middle", "right"),
    "pan": ("westward", "eastward"),
}
# What `training.miniature.reading.read` reads back from pixels.
CHECKED = ("weather", "time", "ground", "side")
SYNONYMS = {
    synonym: word
    for word, synonyms in {
        "clear": "sunny cloudless", "cloudy": "clouds overcast", "foggy": "fog mist misty",
        "dawn": "sunrise morning", "noon": "day midday", "dusk": "sunset evening",
        "night": "midnight moonlight moonlit moon",
        "meadow": "grass field", "desert": "sand dunes", "lake": "water sea", "snow": "snowy winter",
        "hills": "hill hilly", "peaks": "peak mountain mountains", "middle": "center centre",
        "westward": "west", "eastward": "east",
    }.items()
    for synonym in synonyms.split()
}  # fmt: skip
ATTRIBUTE_OF = {word: name for name, words in VALUES.items() for word in words}


@dataclass(frozen=True)
class Scene:
    """One value of VALUES for each attribute; `side` is where the sun or the moon stands."""

    weather: str
    time: str
    ground: str
    ridges: str
    side: str
    pan: str

    def __post_init__(self) -> None:
        for name, words in VALUES.items():
            if getattr(self, name) not in words:
                raise ValueError(f"{name} is one of {', '.join(words)}, not {getattr(self, name)!r}.")

    @property
    def light(self) -> str:
        return "moon" if self.time == "night" else "sun"

    @property
    def caption(self) -> str:
        """Seven words, such as "clear dusk lake peaks sun left eastward"."""
        return f"{self.weather} {self.time} {self.ground} {self.ridges} {self.light} {self.side} {self.pan}"


def scene(number: int) -> Scene:
    """The scene of a number, the same on every machine; every scene is equally likely."""
    chance = random.Random(number)
    return Scene(**{name: chance.choice(words) for name, words in VALUES.items()})


def every_scene() -> Iterator[Scene]:
    """All scenes, in the order of VALUES."""
    return (Scene(*words) for words in product(*VALUES.values()))


def parse(text: str) -> dict[str, str]:
    """{attribute: word} of what a text says, in any order of words; the first word of an attribute counts, and words of
    VALUES before their synonyms.

    Other words are ignored: an attribute that is not spoken of is missing.
    """
    spoken = re.findall("[a-z]+", re.sub("[a-z]+-(covered|capped)", "", text.lower()))
    meant = [*spoken, *(SYNONYMS[word] for word in spoken if word in SYNONYMS)]
    return {ATTRIBUTE_OF[word]: word for word in reversed(meant) if word in ATTRIBUTE_OF}


def understood(text: str) -> Scene | None:
    """The scene that a prompt asks for; what it leaves open is chosen by the text. None where it speaks of nothing."""
    said = parse(text)
    return replace(scene(zlib.crc32(text.encode(errors="replace"))), **said) if said else None
