"""Short talks: one side asks about the world or tells its name, the other answers.

The same talks are told twice. `stories.py` tells them as prose, for pre-training: there the model
learns what is true, and to remember who said what. `conversations.py` writes them down as
chats between a user and an assistant: there it learns whose turn it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from model.demo import smalltalk as st
from model.demo.names import is_held_out, user_name
from model.demo.world import ATTRIBUTES, Item, Person, follow_up, items, people, person_item

# How often each kind of question comes up. A fact is learnt by meeting it often enough, so a family
# with many or long answers has a larger share.
SHARES = {
    "town": 6, "job": 6, "pet": 6, "food": 6, "hobby": 6, "sum": 12, "counting": 14, "opposite": 6,
    "plural": 5, "colour": 4, "sound": 2, "kind": 5, "lesson": 9, "order": 12, "follow-up": 10,
    "unknown": 8, "small talk": 11, "like": 4,
}  # fmt: skip
FARTHEST = 8  # most questions between telling one's name and asking for it


@dataclass(frozen=True)
class Turn:
    """One question or remark with its reply."""

    family: str
    ask: str
    reply: str


@dataclass(frozen=True)
class Talk:
    """An opening that sets the scene (or nothing), and the turns."""

    opening: str
    turns: tuple[Turn, ...]


class Talker:
    """Draws talks at random.

    Args:
        rng: where the chance comes from.
        held_out: True asks only what is held out, False only what is not, None everything.
            Names that are held out come up only with True.
    """

    def __init__(self, rng: Random, held_out: bool | None) -> None:
        self.rng, self.held_out = rng, held_out
        self.robot = st.ROBOT

    def may_ask(self, question: str | Item) -> bool:
        """Whether this question, sentence or word is on our side of the split."""
        held_out = question.held_out if isinstance(question, Item) else is_held_out(question)
        return self.held_out is None or held_out == self.held_out

    def one_of(self, choices: list | tuple) -> str | Item | Person:
        """One of those that may be asked."""
        return self.rng.choice([choice for choice in choices if self.may_ask(choice)])

    def name(self) -> str:
        """A user's name."""
        return user_name(self.rng, bool(self.held_out))

    def talk(self) -> Talk:
        """An opening and what follows it."""
        return Talk(self.open(), tuple(self.turns()))

    def turns(self) -> list[Turn]:
        """Mostly plain questions, or something told and, 0 to 8 questions later, asked for.

        Half as often it was never told, after just as many questions: length is no clue.
        """
        rng = self.rng
        subject = rng.choices(["nothing", "name", "like"], [40, 45, 15])[0]
        if subject == "nothing":
            return self.questions(rng.randint(1, 5))
        tell, known, unknown = self.name_turns() if subject == "name" else self.like_turns()
        before = self.questions(rng.choice([0, 0, 0, 1, 2]), without=subject)
        between = self.questions(rng.randint(0, FARTHEST), without=subject)
        if rng.random() < 0.65:
            return [*before, tell, *between, known]
        turns = [*before, *between, unknown]
        if rng.random() < 0.3:
            turns += [tell, *self.questions(rng.randint(0, 2), without=subject), known]
        return turns

    def open(self) -> str:
        """Sets the scene: nothing, a neutral sentence, or another name for the answering side."""
        draw = self.rng.random()
        self.robot = st.ROBOT
        if draw < 0.6:
            return ""
        if draw < 0.85:
            return self.rng.choice(st.OPENINGS)
        self.robot = self.name()
        return self.rng.choice(st.ROBOT_NAMED).format(robot=self.robot)

    def name_turns(self) -> tuple[Turn, Turn, Turn]:
        """A name told; asked for and known; asked for and never told."""
        name, rng = self.name(), self.rng
        if not self.held_out and rng.random() < 0.06:
            name = name.lower()
        told = rng.choice(st.NAME_TOLD).format(name=name)
        if not self.held_out and rng.random() < 0.1:
            told = told[0].lower() + told[1:].rstrip(".")
        asked = self.casually(rng.choice(st.NAME_ASKED))
        return (
            Turn("name told", told, st.NAME_HEARD.format(name=name)),
            Turn("name", asked, st.NAME_KNOWN.format(name=name)),
            Turn("no name", asked, st.NAME_UNKNOWN),
        )

    def like_turns(self) -> tuple[Turn, Turn, Turn]:
        """Something liked, told; asked for and known; asked for and never told."""
        thing, asked = self.one_of(st.LIKED), self.casually(self.rng.choice(st.LIKE_ASKED))
        told = self.rng.choice(st.LIKE_TOLD).format(thing=thing)
        return (
            Turn("like", told, st.LIKE_HEARD.format(thing=thing)),
            Turn("what I like", asked, st.LIKE_KNOWN.format(thing=thing)),
            Turn("nothing liked", asked, st.LIKE_UNKNOWN),
        )

    def questions(self, count: int, without: str = "") -> list[Turn]:
        """That many turns of any family that needs nothing told before, except one."""
        turns: list[Turn] = []
        while len(turns) < count:
            family = self.rng.choices(list(SHARES), list(SHARES.values()))[0]
            if family == without:
                continue
            if family == "follow-up":
                turns += self.follow_up()
            elif family == "unknown":
                turns.append(self.unknown())
            elif family == "small talk":
                turns.append(self.small_talk())
            elif family == "like":
                turns.append(self.like_turns()[0])
            else:
                item = self.one_of(items()[family])
                turns.append(
                    Turn(family, self.casually(self.rng.choice(item.questions)), item.answer)
                )
        return turns[:count]

    def follow_up(self) -> list[Turn]:
        """A question about somebody, then one that only the first makes clear."""
        rng = self.rng
        first = self.one_of([i for family in ATTRIBUTES for i in items()[family]])
        turns = [Turn(first.family, rng.choice(first.questions), first.answer)]
        if rng.random() < 0.6:  # the same person: "And what does she do?"
            same = [
                person_item(first.person, other) for other in ATTRIBUTES if other != first.family
            ]
            same = [item for item in same if self.may_ask(item)]
            if same:
                second = rng.choice(same)
                ask = rng.choice(follow_up(first.person, second.family))
                turns.append(Turn("follow-up", ask, second.answer))
        else:  # the same question: "And Ben?"
            second = self.one_of([person_item(p, first.family) for p in people()])
            asked = ("And {name}?", "What about {name}?", "And what about {name}?")
            ask = rng.choice(asked).format(name=second.person.name)
            turns.append(Turn("follow-up", ask, second.answer))
        return turns

    def unknown(self) -> Turn:
        """A question that nothing in the world answers."""
        rng = self.rng
        draw = rng.random()
        if draw < 0.3:
            return Turn("unknown", self.casually(self.one_of(st.sentences(st.OUTSIDE))), st.UNKNOWN)
        if draw < 0.45:
            ask = self.one_of([q.format(name=p.name) for q in st.NEVER_TOLD for p in people()])
        elif draw < 0.8:
            name = self.stranger()
            attribute = rng.choice(list(ATTRIBUTES.values()))
            ask = rng.choice(attribute[1]).format(X=name, Xs=f"{name}'s")
        else:
            ask = rng.choice(st.STRANGERS).format(name=self.stranger())
        return Turn("unknown", ask, st.UNKNOWN)

    def stranger(self) -> str:
        """The name of nobody in the world."""
        known = {person.name for person in people()}
        while (name := self.name()) in known:
            pass
        return name

    def small_talk(self) -> Turn:
        """A greeting, thanks, or a question to the answering side about itself."""
        told_a_name = self.robot != st.ROBOT
        while True:
            asks, reply = self.rng.choice(st.SMALL_TALK)
            allowed = [ask for ask in st.sentences(asks) if self.may_ask(ask)]
            # A name that was given in the opening is asked for more often than others.
            if allowed and ("{robot}" in reply or not told_a_name or self.rng.random() < 0.3):
                break
        ask = self.rng.choice(allowed).format(robot=self.robot)
        return Turn("small talk", self.casually(ask), reply.format(robot=self.robot))

    def casually(self, ask: str) -> str:
        """Now and then without the final mark, or in lower case, as people type."""
        if self.held_out or self.rng.random() > 0.16:
            return ask
        if self.rng.random() < 0.6:
            ask = ask.rstrip("?.!")
        return ask.lower() if self.rng.random() < 0.6 else ask
