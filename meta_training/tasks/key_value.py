"""Key-value recall: lines that give each key a code, the plainest test of what an adapter can hold."""

from __future__ import annotations

import random

from meta_training.document import Document, Question
from meta_training.tasks.task import CountTokens, Split
from perk.errors import InvalidInput

__all__ = ["KeyValue"]

# fmt: off
_ADJECTIVES = (
    "amber", "ancient", "arctic", "autumn", "bitter", "blazing", "bold", "brave", "bright", "brisk", "broken", "bronze",
    "calm", "careful", "cedar", "chilly", "clever", "cloudy", "cobalt", "cold", "copper", "coral", "cosmic", "crimson",
    "crooked", "crystal", "curious", "daring", "dark", "dawn", "deep", "distant", "dizzy", "dusty", "eager", "early",
    "eastern", "electric", "elegant", "emerald", "empty", "faded", "faint", "fancy", "fearless", "fierce", "flat",
    "floating", "fragile", "fresh", "frosty", "frozen", "gentle", "giant", "gilded", "glowing", "golden", "graceful",
    "grand", "green", "happy", "harvest", "hidden", "hollow", "honest", "humble", "hungry", "icy", "idle", "indigo",
    "iron", "ivory", "jolly", "keen", "kind", "late", "lazy", "light", "little", "lively", "lone", "lost", "loud",
    "lucky", "lunar", "marble", "mellow", "merry", "mild", "misty", "modern", "narrow", "nimble", "noble", "northern",
    "odd", "orange", "pale", "patient", "plain", "polar", "polished", "proud", "purple", "quick", "quiet", "rapid",
    "rare", "restless", "ripe", "rough", "royal", "ruby", "rusty", "salty", "scarlet", "secret", "shady", "sharp",
    "shy", "silent", "silver", "sleepy", "smooth", "snowy", "solar", "solid", "spiral", "spring", "steady", "stormy",
    "strange", "sturdy", "summer", "sunny", "swift", "tall", "tender", "tidy", "tiny", "velvet", "violet", "warm",
    "western", "wild", "windy", "winter", "wise", "wooden", "yellow",
)
_NOUNS = (
    "acorn", "anchor", "apple", "arrow", "badger", "balloon", "banjo", "barrel", "basket", "beacon", "bear", "bell",
    "bison", "blossom", "boat", "bottle", "boulder", "bridge", "bucket", "butter", "cabin", "cactus", "camel", "candle",
    "canyon", "carpet", "castle", "cello", "cherry", "circle", "clock", "cloud", "clover", "comet", "compass", "coyote",
    "crane", "crater", "cricket", "crown", "dagger", "daisy", "desert", "dolphin", "donkey", "dragon", "drum", "eagle",
    "engine", "falcon", "feather", "fern", "ferry", "fiddle", "finch", "flame", "forest", "fossil", "fountain", "fox",
    "galaxy", "garden", "garnet", "geyser", "glacier", "goblet", "guitar", "hammer", "harbor", "harp", "hawk", "hazel",
    "heron", "honey", "hornet", "island", "jacket", "jaguar", "jasmine", "jewel", "kettle", "kite", "ladder", "lagoon",
    "lantern", "lemon", "leopard", "lily", "lion", "lizard", "lobster", "locket", "magnet", "maple", "meadow", "mirror",
    "monkey", "moon", "mountain", "needle", "nest", "oasis", "ocean", "olive", "orchard", "orchid", "otter", "owl",
    "oyster", "paddle", "panther", "parrot", "pebble", "pelican", "pepper", "piano", "pillow", "pine", "planet", "pond",
    "pony", "prairie", "prism", "puzzle", "quartz", "rabbit", "raven", "reef", "ribbon", "river", "robin", "rocket",
    "saddle", "sailor", "salmon", "shadow", "sparrow", "spider", "spoon", "statue", "temple", "thistle", "tiger",
    "tower", "trumpet", "tunnel", "turtle", "valley", "walnut", "willow",
)
# fmt: on


class KeyValue:
    """Lists of made-up codes."""

    def __init__(self, *, split: Split, count_tokens: CountTokens, questions: int = 8) -> None:
        """Choose the keys.

        Args:
            split: each split has half of the keys; they share none.
            count_tokens: of the base's tokeniser.
            questions: at most, for each document.

        Raises:
            InvalidInput: no question.
        """
        if questions < 1:
            raise InvalidInput("questions", str(questions), "at least 1")
        self.name = "key-value"
        parity = 1 if split == "dev" else 0
        self._keys = [
            f"{adjective} {noun}"
            for i, adjective in enumerate(_ADJECTIVES)
            for j, noun in enumerate(_NOUNS)
            if (i + j) % 2 == parity
        ]
        self._count_tokens = count_tokens
        self._questions = questions

    def draw(self, rng: random.Random, *, tokens: int, position: float | None = None) -> Document:
        """A list of codes; `position` pins the line asked for, and leaves one question.

        Raises:
            InvalidInput: there are not enough keys for so many tokens.
        """
        codes: dict[str, int] = {}
        used = 0
        for key in rng.sample(self._keys, len(self._keys)):
            code = rng.randrange(10_000, 100_000)
            used += self._count_tokens(_line(key, code)) + 1
            if codes and used > tokens:
                break
            codes[key] = code
        else:
            raise InvalidInput("tokens", str(tokens), f"at most {used}, all {len(codes)} keys")
        keys = list(codes)
        if position is None:
            asked = rng.sample(keys, min(self._questions, len(keys)))
        else:
            asked = [keys[min(int(position * len(keys)), len(keys) - 1)]]
        context = "\n".join(_line(key, code) for key, code in codes.items())
        return Document(context, tuple(self._question(key, codes[key]) for key in asked))

    def _question(self, key: str, code: int) -> Question:
        return Question(f"What is the code of {key}?", str(code), support=(_line(key, code),), task=self.name)


def _line(key: str, code: int) -> str:
    return f"The code of {key} is {code}."
