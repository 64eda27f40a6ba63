"""Criteria that judge files in the tests name."""

from selfplay.records import Prompt


def has_hello(prompt: Prompt, response: str) -> float:
    return float("hello" in response.lower())


def vowels(prompt: Prompt, response: str) -> float:
    return sum(letter in "aeiou" for letter in response.lower()) / max(1, len(response))


def asked_for(prompt: Prompt, response: str) -> float:
    return float(prompt.meta["word"] in response)


def swears(prompt: Prompt, response: str) -> bool:
    return "darn" in response


def third(prompt: Prompt, response: str) -> float:
    return 1 / 3


def too_much(prompt: Prompt, response: str) -> float:
    return 1.5


def nothing_at_all(prompt: Prompt, response: str) -> None:
    return None


def not_a_number(prompt: Prompt, response: str) -> float:
    return float("nan")


def as_text(prompt: Prompt, response: str) -> str:
    return "0.5"


def three(prompt: Prompt, response: str) -> int:
    return 3


def needs_place(prompt: Prompt, response: str) -> float:
    return float(prompt.meta["place"] in response)


class Raising:
    def judge(self, pairs: object) -> object:
        return 1 / 0


NUMBER = 3
