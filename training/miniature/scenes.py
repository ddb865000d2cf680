"""Scenes of painted landscapes: a few attributes, each one word of the caption."""

from __future__ import annotations

import random
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

# In the order of the caption's words. No word belongs to two attributes, so prompts may use any order.
VALUES = {
    "weather": ("clear", "cloudy", "foggy"),
    "time": ("dawn", "noon", "dusk", "night"),
    "ground": ("meadow", "desert", "lake", "snow"),
    "ridges": ("hills", "peaks"),
    "side": ("left", "middle", "right"),
    "pan": ("westward", "eastward"),
}
# Attributes that `training.miniature.reading.read` reads back from pixels.
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
    """One of VALUES for each attribute. `side`: position of the sun or the moon."""

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
        """The caption of seven words, such as "clear dusk lake peaks sun left eastward"."""
        return f"{self.weather} {self.time} {self.ground} {self.ridges} {self.light} {self.side} {self.pan}"


def scene(number: int) -> Scene:
    """Return the scene of a number, the same on every machine. All scenes are equally likely."""
    chance = random.Random(number)
    return Scene(**{name: chance.choice(words) for name, words in VALUES.items()})


def every_scene() -> Iterator[Scene]:
    """Yield all scenes, in the order of VALUES."""
    return (Scene(*words) for words in product(*VALUES.values()))


def parse(text: str) -> dict[str, str]:
    """Return {attribute: word} for the attributes that a text names, in any order.

    An attribute's first word counts, and words of VALUES before their synonyms. Other words are ignored.
    """
    words = re.findall("[a-z]+", re.sub("[a-z]+-(covered|capped)", "", text.lower()))
    meant = [*words, *(SYNONYMS[word] for word in words if word in SYNONYMS)]
    return {ATTRIBUTE_OF[word]: word for word in reversed(meant) if word in ATTRIBUTE_OF}


def understood(text: str) -> Scene | None:
    """Return the scene that a prompt asks for, or None if it names no attribute. The rest is chosen by a hash."""
    named = parse(text)
    return replace(scene(zlib.crc32(text.encode(errors="replace"))), **named) if named else None
