"""Texts in several languages, and the reason for which a step drops one."""

from typing import Any

from maas_ray.data.cleaning import Dropped, Notes
from maas_ray.data.cleaning.base import CleaningStep

ENGLISH = (
    "The quick brown fox jumps over the lazy dog, and all the people of the town have seen it with their own eyes."
)
GERMAN = "Der schnelle braune Fuchs springt über den faulen Hund, und alle Leute der Stadt haben es mit Augen gesehen."
CHINESE = "敏捷的棕色狐狸跳过了懒狗，城里所有的人都亲眼看到了这一切，大家都觉得非常有趣，纷纷鼓掌。"
ARABIC = "قفز الثعلب البني السريع فوق الكلب الكسول، وقد رأى كل أهل المدينة ذلك بأعينهم وأعجبهم كثيرا."


def fate(step: CleaningStep, text: Any) -> str | None:
    """Why a text is dropped; None: it stays."""
    try:
        step.clean({"text": text}, Notes())
    except Dropped as reason:
        return str(reason)
    return None
