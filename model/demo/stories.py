"""Documents for pre-training: talks told as prose, quizzes, lives, stories, lists said twice.

Nobody here is called user or assistant. Six documents in ten wear the marks of the chat format
as plain separators, with neutral titles, so that chat training finds the marks known but their
use new.
"""

from __future__ import annotations

from random import Random

from model.demo import world
from model.demo.names import invented_name, is_held_out, user_name
from model.demo.smalltalk import LIKED
from model.demo.talks import Talker

TITLES = "story tale life people facts notes quiz lesson talk scene list page part".split()
# Every chat prompt of Llama 3.2 begins with these lines.
DATES = "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"


class Storyteller:
    """Writes document number `number` of the stream called `seed`: a pure function of the two."""

    def __init__(self, seed: str, number: int) -> None:
        self.rng = Random(f"{seed} {number}")
        self.talker = Talker(self.rng, held_out=None)

    def document(self) -> str:
        """One to three pieces, marked with headers or not, between begin and end of text."""
        rng = self.rng
        marked = rng.random() < 0.6
        sections: list[str] = []
        opening = self.talker.open()
        if marked and rng.random() < 0.3:
            sections.append(DATES + opening)
            opening = ""
        # One talk at most: nobody is asked for a name that was told in another talk.
        others = [self.life, self.story, self.said_twice, self.facts]
        writers = rng.choices(others, [9, 9, 9, 4], k=rng.choice([0, 0, 1, 2]))
        if not writers or rng.random() < 0.8:
            writers.insert(rng.randint(0, len(writers)), lambda: self.talk(opening, marked))
        for write in writers:
            sections += write()
        if not marked:
            return "<|begin_of_text|>" + "\n\n".join(sections) + "<|end_of_text|>"
        wrapped = (
            f"<|start_header_id|>{rng.choice(TITLES)}<|end_header_id|>\n\n{section}<|eot_id|>"
            for section in sections
        )
        return "<|begin_of_text|>" + "".join(wrapped) + "<|end_of_text|>"

    def talk(self, opening: str, marked: bool) -> list[str]:
        """A talk as prose, in one section or in several; no cut parts a question from its reply."""
        rng = self.rng
        style = rng.choice(STYLES)
        lines = [style.format(ask=turn.ask, reply=turn.reply) for turn in self.talker.turns()]
        lines = [opening, *lines] if opening else lines
        draw = rng.random()
        if marked and draw < 0.4:
            return lines
        glue = rng.choice(["\n", "\n", " "])
        if draw < 0.6:
            cut = rng.randint(0, len(lines))
            return [glue.join(part) for part in (lines[:cut], lines[cut:]) if part]
        return [glue.join(lines)]

    def life(self) -> list[str]:
        """What there is to say about one person."""
        person = self.rng.choice(world.people())
        order = self.rng.sample(list(world.ATTRIBUTES), 5)
        told = [world.person_item(person, attribute).answer for attribute in order]
        if self.rng.random() < 0.6:
            pronoun = person.pronoun.capitalize()
            told[1:] = [pronoun + sentence.removeprefix(person.name) for sentence in told[1:]]
        return [" ".join(told)]

    def facts(self) -> list[str]:
        """Statements about all kinds of things."""
        families = [f for f in world.items() if f not in ("sum", "counting")]
        chosen = [self.rng.choice(world.items()[self.rng.choice(families)]) for _ in range(5)]
        return [" ".join(item.answer for item in chosen)]

    def listed(self, fewest: int, most: int) -> str:
        """Names with commas between, or now and then things."""
        rng = self.rng
        count = rng.randint(fewest, most)
        if rng.random() < 0.2:
            return ", ".join(rng.sample(LIKED, count))
        return ", ".join(
            user_name(rng) if rng.random() < 0.4 else self.new_name() for _ in range(count)
        )

    def said_twice(self) -> list[str]:
        """A list and the same list again: the plainest exercise in copying."""
        rng = self.rng
        listed = self.listed(2, 7)
        again = rng.choice(["Again: ", "Once more: ", "And again: ", ""])
        if rng.random() < 0.3:
            return [f"{listed}.", f"{again}{listed}."]
        return [f"{listed}.\n{again}{listed}."]

    def new_name(self) -> str:
        """An invented name that is not held out."""
        name = invented_name(self.rng)
        return self.new_name() if any(map(is_held_out, name.split())) else name

    def story(self) -> list[str]:
        """A tale of two, whose names come back."""
        rng = self.rng
        hero, friend = user_name(rng), user_name(rng)
        words = {
            "hero": hero,
            "friend": friend,
            "pet": rng.choice(world.PETS),
            "town": rng.choice(world.TOWNS),
            "job": world.a(rng.choice(world.JOBS)),
            "food": rng.choice(world.FOODS),
            "like": rng.choice(LIKED),
            "thing": rng.choice("ball book key drum hammer spoon doll cup coat box".split()),
            "colour": rng.choice("red blue green yellow white black brown".split()),
        }
        parts = [rng.choice(choices).format(**words) for choices in PLOT]
        if rng.random() < 0.3:
            return [" ".join(parts[:2]), " ".join(parts[2:])]
        return [" ".join(parts)]


# How a turn is told. No style puts the question and its answer into different sections.
STYLES = (
    "{ask} {reply}",
    "{ask}\n{reply}",
    '"{ask}" "{reply}"',
    '"{ask}"\n"{reply}"',
    "- {ask}\n- {reply}",
    "Q: {ask}\nA: {reply}",
    "Question: {ask}\nAnswer: {reply}",
    'The child said: "{ask}" The robot said: "{reply}"',
    '"{ask}" said one. "{reply}" said the other.',
    "One: {ask}\nTwo: {reply}",
)

PLOT = (
    (
        "Once upon a time there was a child called {hero}. {hero} lived in {town}.",
        "There once was {job} in {town} whose name was {hero}.",
        "{hero} lived in a small house in {town} with a {colour} {pet}.",
        "This is the story of {hero}, {job} from {town}.",
    ),
    (
        "One day {hero} found a {colour} {thing} under a tree.",
        "One morning {hero} went out to buy some {food} and met {friend}.",
        "{hero} had a friend whose name was {friend}. {friend} liked {like}.",
        "In the evening {hero} heard a loud noise. It was the {pet} of {friend}.",
    ),
    (
        '"Whose {thing} is this?" asked {hero}. "It is mine," said {friend}.',
        '"What do you like?" asked {friend}. "I like {like}," said {hero}.',
        '"Come with me, {hero}," said {friend}, and they walked to {town} together.',
        "{friend} gave {hero} some {food}, and {hero} gave {friend} a {colour} {thing}.",
    ),
    (
        "So {hero} and {friend} became good friends.",
        "Then {hero} went home and slept.",
        "From that day on {friend} visited {hero} every week.",
        "Everybody in {town} still talks about {hero} and {friend}.",
    ),
)


def document(seed: str, number: int) -> str:
    """Document `number` of stream `seed`; control tokens stand in it by their names."""
    return Storyteller(seed, number).document()


def exercise(seed: str, number: int) -> str:
    """Exercise `number` of stream `seed`: a long list, said twice."""
    writer = Storyteller(f"{seed} exercise", number)
    listed = writer.listed(4, 14) + "."
    between = writer.rng.choice(["\n", " ", "\nAgain: "])
    return f"<|begin_of_text|>{listed}{between}{listed}<|end_of_text|>"
