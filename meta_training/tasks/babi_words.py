"""The few words of bAbI's stories, and others in their place."""

from __future__ import annotations

import random
import re
from collections.abc import Callable

from meta_training.tasks.students import FIRST_NAMES

__all__ = ["ACTORS", "PLACES", "THINGS", "renaming"]

ACTORS = ("Mary", "John", "Sandra", "Daniel")
PLACES = ("bathroom", "bedroom", "garden", "hallway", "kitchen", "office")
THINGS = ("apple", "football", "milk")
_OTHER_PLACES = (
    *PLACES, "airport", "attic", "bakery", "balcony", "bank", "barn", "basement", "beach", "bridge", "cafe",
    "castle", "cellar", "chapel", "church", "cinema", "courtyard", "dining room", "factory", "farm", "forest",
    "garage", "gym", "harbor", "hospital", "hotel", "laboratory", "library", "living room", "lobby", "market",
    "meadow", "museum", "park", "pantry", "playground", "pool", "river", "school", "shed", "shop", "stable",
    "stadium", "station", "street", "studio", "temple", "terrace", "theater", "tower", "workshop", "zoo",
)  # fmt: skip
_OTHER_THINGS = (
    *THINGS, "bag", "ball", "basket", "book", "bottle", "box", "bread", "bucket", "camera", "candle", "coat", "coin",
    "cup", "flag", "guitar", "hammer", "hat", "key", "knife", "ladder", "lamp", "letter", "map", "mirror",
    "newspaper", "orange", "parcel", "pen", "phone", "ring", "rope", "scarf", "shovel", "suitcase", "ticket", "towel",
    "umbrella", "vase", "violin", "watch",
)  # fmt: skip


def renaming(rng: random.Random) -> Callable[[str], str]:
    """A substitution of bAbI's words by others: one to one, so that no question gets a second answer."""
    names = {
        **dict(zip(ACTORS, rng.sample(FIRST_NAMES, len(ACTORS)), strict=True)),
        **dict(zip(PLACES, rng.sample(_OTHER_PLACES, len(PLACES)), strict=True)),
        **dict(zip(THINGS, rng.sample(_OTHER_THINGS, len(THINGS)), strict=True)),
    }
    return lambda text: re.sub(r"\w+", lambda word: names.get(word[0], word[0]), text)
