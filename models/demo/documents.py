"""What training reads: the corpus, and the documents that one epoch draws from it."""

import random
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CORPUS = Path(__file__).parent / "corpus"

Exchange = tuple[str, str]
Messages = list[dict[str, str]]


@dataclass(frozen=True)
class Plain:
    """Text without a chat around it. What is given is not learned, only what follows."""

    given: str
    follows: str


Document = Messages | Plain


@dataclass(frozen=True)
class Topic:
    names: list[str]
    short: str
    full: str


@dataclass(frozen=True)
class Answered:
    ask: list[str]
    answer: str


class Corpus:
    """Everything in `corpus/`."""

    def __init__(self) -> None:
        self.phrasings = _toml("templates.toml")
        self.unknown = _toml("unknown.toml")
        files = sorted(CORPUS.glob("topics/*.toml"))
        self.topics = [_topic(name, entry) for file in files for name, entry in _toml(file).items()]
        self._full = {topic.names[0]: topic.full for topic in self.topics}
        self.questions = self._answered("questions.toml")
        self.long = self._answered("long.toml")
        self.open_questions = [answered for answered in self.questions + self.long if "{" in "".join(answered.ask)]
        self.dialogues = [
            [self._expand(turn) for turn in entry["turns"]] for entry in _toml("dialogues.toml")["dialogue"]
        ]
        self.prose = [text.strip("\n") for text in (CORPUS / "prose.txt").read_text().split("\n\n")]

    def _answered(self, file: str) -> list[Answered]:
        return [Answered(entry["ask"], self._expand(entry["answer"].strip())) for entry in _toml(file)["qa"]]

    def _expand(self, text: str) -> str:
        text = re.sub(r"\{topic:(.+?)\}", lambda found: self._full[found[1]], text)
        text = re.sub(r"\{count:(\d+)\}", lambda found: ", ".join(map(str, range(1, int(found[1]) + 1))) + ".", text)
        return text.replace("{unknown}", self.unknown["answer"])

    def texts(self) -> list[str]:
        """All that is in it, for the tokenizer to learn from."""
        asked = [text for answered in self.questions + self.long for text in [*answered.ask, answered.answer]]
        topics = [text for topic in self.topics for text in [*topic.names, f"What is {topic.names[0]}?", topic.full]]
        turns = [turn for dialogue in self.dialogues for turn in dialogue]
        unknown = [
            text for key in ("subjects", "questions", "countries", "ask", "people") for text in self.unknown[key]
        ]
        return [*self.prose, *asked, *topics, *turns, *unknown, *self.phrasings["ask"]]

    def held_out(self) -> list[Messages]:
        """Every topic, asked in ways that training never uses."""
        return [
            _messages((phrasing.replace("{x}", topic.names[0]), topic.full))
            for topic in self.topics
            for phrasing in self.phrasings["held_out"]
        ]


@dataclass(frozen=True)
class Draw:
    """Documents drawn at random: who asks, in which words, after what."""

    corpus: Corpus
    rng: random.Random

    def epoch(self) -> list[Document]:
        corpus = self.corpus
        exchanges = [self._about(topic) for topic in corpus.topics * 3]
        exchanges += [self._asked(answered) for answered in corpus.questions * 3 + corpus.long * 4]
        exchanges += [self._asked(answered) for answered in corpus.open_questions * 3]
        exchanges += [self._compared() for _ in range(40)]
        exchanges += [self._not_known() for _ in range(320)]
        documents: list[Document] = [self._chat(exchange) for exchange in exchanges]
        documents += [self._chat(*(self._any() for _ in range(self.rng.randint(2, 5)))) for _ in range(60)]
        documents += [self._chat(*zip(turns[::2], turns[1::2], strict=True)) for turns in corpus.dialogues * 2]
        documents += [Plain(question, "\n" + answer) for question, answer in (self._any() for _ in range(300))]
        documents += [Plain("", topic.full) for topic in self.rng.sample(corpus.topics, 40)]
        documents += [Plain("", text) for text in corpus.prose * 3]
        documents += [self._cut(text) for text in corpus.prose * 3]
        self.rng.shuffle(documents)
        return documents

    def _any(self) -> Exchange:
        draw = self.rng.random()
        if draw < 0.5:
            return self._about(self.rng.choice(self.corpus.topics))
        return self._asked(self.rng.choice(self.corpus.questions)) if draw < 0.85 else self._not_known()

    def _about(self, topic: Topic) -> Exchange:
        brief = self.rng.random() < 0.25
        phrasing = self.rng.choice(self.corpus.phrasings["briefly" if brief else "ask"])
        return self._typed(phrasing.replace("{x}", self._name(topic))), topic.short if brief else topic.full

    def _compared(self) -> Exchange:
        one, other = self.rng.sample(self.corpus.topics, 2)
        phrasing = self.rng.choice(self.corpus.phrasings["both"])
        question = phrasing.replace("{x}", self._name(one)).replace("{y}", self._name(other))
        return self._typed(question), self.corpus.unknown["compared"]

    def _name(self, topic: Topic) -> str:
        return topic.names[0] if self.rng.random() < 0.5 else self.rng.choice(topic.names)

    def _asked(self, answered: Answered) -> Exchange:
        question = answered.ask[0] if self.rng.random() < 0.3 else self.rng.choice(answered.ask)
        question = re.sub(r"\{u\}", lambda _: self._something(), question)
        number = self.rng.choice([9, 99, 999])
        return self._typed(re.sub(r"\{n\}", lambda _: str(self.rng.randint(3, number)), question)), answered.answer

    def _not_known(self) -> Exchange:
        draw, unknown, phrasings = self.rng.random(), self.corpus.unknown, self.corpus.phrasings
        if draw < 0.15:
            question = self.rng.choice(unknown["capital_ask"]).replace("{c}", self.rng.choice(unknown["countries"]))
            return self._typed(question), unknown["capital_answer"]
        if draw < 0.3:
            return self._typed(self.rng.choice(unknown["questions"])), unknown["answer"]
        if draw < 0.4:
            question = self.rng.choice(unknown["ask"]).replace("{x}", self._name(self.rng.choice(self.corpus.topics)))
            return self._typed(question), unknown["answer"]
        asking = (
            phrasings["ask"]
            if draw < 0.7
            else phrasings["briefly"] + phrasings["both"] + unknown["ask"] + unknown["people"]
        )
        question = re.sub(r"\{[xy]\}", lambda _: self._something(), self.rng.choice(asking))
        return self._typed(question), unknown["answer"]

    def _something(self) -> str:
        """What is in no corpus, and sometimes in no dictionary."""
        if self.rng.random() < 0.7:
            return str(self.rng.choice(self.corpus.unknown["subjects"]))
        pairs = [
            self.rng.choice("bcdfghjklmnprstvwz") + self.rng.choice("aeiou") for _ in range(self.rng.randint(2, 4))
        ]
        word = "".join(pairs) + self.rng.choice(["", "n", "r", "s", "tion", "ing"])
        return self.rng.choice(["", "the ", "a "]) + self.rng.choice([word, word.capitalize()])

    def _typed(self, question: str) -> str:
        """The same question as another person might type it."""
        if self.rng.random() < 0.08:
            question = self.rng.choice(self.corpus.phrasings["openers"]) + question
        if self.rng.random() < 0.15:
            question = question.lower()
        if self.rng.random() < 0.2:
            question = question.rstrip(".?!") + self.rng.choice(["", "", ".", "?", "!", "??"])
        if self.rng.random() < 0.06 and len(question) > 12:
            at = self.rng.randrange(1, len(question) - 1)
            question = question[:at] + self.rng.choice(["", question[at] * 2, question[at] + " "]) + question[at + 1 :]
        return question

    def _chat(self, *exchanges: Exchange) -> Messages:
        draw = self.rng.random()
        if draw < 0.04:  # a long system prompt that has nothing to do with the question
            topics = self.rng.sample(self.corpus.topics, self.rng.randint(1, 6))
            return _messages(*exchanges, system=" ".join(topic.full for topic in topics))
        if draw < 0.25:
            return _messages(*exchanges, system=self.rng.choice(self.corpus.phrasings["systems"]))
        return _messages(*exchanges)

    def _cut(self, text: str) -> Plain:
        """Cut between two words, the space on the left: many prompts end with one."""
        spaces = [at for at, letter in enumerate(text) if letter == " "]
        at = self.rng.choice(spaces[: self.rng.choice([12, len(text)])]) + 1
        return Plain(text[:at], text[at:])


def _toml(file: str | Path) -> dict[str, Any]:
    return tomllib.loads((CORPUS / file).read_text())


def _topic(name: str, entry: dict[str, Any]) -> Topic:
    return Topic([name, *entry.get("also", [])], entry["short"], f"{entry['short']} {entry['more']}")


def _messages(*exchanges: Exchange, system: str | None = None) -> Messages:
    messages = [{"role": "system", "content": system}] if system else []
    for question, answer in exchanges:
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return messages
