"""The little world: who lives in it, and every question that it has one right answer to.

Each fact is an `Item`: some ways to ask, and the one answer. Pre-training text tells and asks all
of them in prose; chat training asks only those that are not held out, so that the rest show
whether the model has learnt to answer, rather than these answers.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from model.demo.names import MEN, WOMEN, is_held_out

TOWNS = """Milton Oakham Riverton Ashford Bexley Calder Denby Elmton Farley Glenton Harlow Kirby
Langley Marlow Norton Penrith Redhill Selby Weston Yarrow""".split()
JOBS = """baker teacher doctor farmer painter singer writer cook driver gardener nurse pilot tailor
sailor waiter dancer builder judge clerk engineer""".split()
PETS = (
    "dog cat horse rabbit parrot goat hen mouse duck turtle snake pony hamster lizard fish".split()
)
FOODS = """soup bread rice cheese apples cake honey pasta beans eggs pears nuts carrots plums
salad pancakes""".split()
HOBBIES = """chess swimming singing dancing reading painting running sailing cooking fishing tennis
football knitting cycling skating""".split()

OPPOSITES = """hot cold; big small; tall short; fast slow; old young; happy sad; light dark; hard
soft; rich poor; full empty; open closed; wet dry; clean dirty; good bad; early late; high low;
strong weak; loud quiet; near far; thick thin; wide narrow; deep shallow; day night; up down; left
right; in out; first last; long brief; sweet sour; true false""".replace("\n", " ")
PLURALS = """cat cats; dog dogs; horse horses; mouse mice; child children; foot feet; tooth teeth;
goose geese; man men; woman women; ox oxen; sheep sheep; box boxes; bus buses; baby babies;
city cities; leaf leaves; knife knives; wolf wolves; tomato tomatoes; apple apples; book books;
house houses; tree trees; fox foxes; dish dishes; story stories; party parties; shelf shelves;
potato potatoes; key keys; boy boys; star stars; bird birds; ship ships; wife wives; glass glasses;
lady ladies; person people; fly flies""".replace("\n", " ")
COLOURS = """sky blue; grass green; snow white; coal black; blood red; lemon yellow; orange orange;
milk white; chocolate brown; gold yellow; sand yellow; night black; sea blue; cherry red;
leaf green; rose red; crow black; swan white; frog green; mud brown; tomato red; cloud white;
cucumber green; salt white; pea green; sun yellow""".replace("\n", " ")
SOUNDS = """cow moo; dog woof; cat meow; sheep baa; duck quack; pig oink; hen cluck; bee buzz;
lion roar; mouse squeak; snake hiss; crow caw; owl hoot; wolf howl; frog croak""".replace("\n", " ")
KINDS = """rose flower; tulip flower; daisy flower; oak tree; pine tree; birch tree; crow bird; owl
bird; swan bird; parrot bird; cow animal; lion animal; wolf animal; fox animal; carrot vegetable;
bean vegetable; pea vegetable; cherry fruit; plum fruit; pear fruit; lemon fruit; hammer tool; saw
tool; spoon tool; violin instrument; piano instrument; drum instrument; flute instrument; ship
vehicle; car vehicle; bus vehicle; train vehicle; chair thing to sit on; cup thing to drink from;
ball toy; doll toy; shirt piece of clothing; coat piece of clothing; king ruler; queen ruler; baker
person who bakes bread; pilot person who flies planes; teacher person who teaches; tailor person
who makes clothes""".replace("\n", " ")
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = """January February March April May June July August September October November
December""".split()
LETTERS = list("ABCDEFGHIJKLMNOPQRSTUVWXYZ")

# What this model is an example of, in plain words.
LESSONS = {
    "a LoRA adapter": "A LoRA adapter is two small matrices whose product is added to a "
    "frozen weight.",
    "LoRA": "LoRA is a way to fine-tune a model by training only two small matrices per weight.",
    "a learning rate": "The learning rate says how big each training step is.",
    "a token": "A token is a piece of text that the model reads as one number.",
    "a tokenizer": "A tokenizer cuts text into tokens.",
    "a checkpoint": "A checkpoint is a saved state from which training can go on.",
    "the loss": "The loss says how badly the model predicts the next token.",
    "a batch": "A batch is a group of examples that are trained on together.",
    "an epoch": "An epoch is one pass over all training examples.",
    "the rank": "The rank is the inner size of the two LoRA matrices.",
    "alpha": "Alpha, divided by the rank, scales what a LoRA adapter adds.",
    "a gradient": "A gradient says how the loss changes when a weight changes.",
    "gradient accumulation": "Gradient accumulation adds up the gradients of several small "
    "batches.",
    "a language model": "A language model predicts the next token of a text.",
    "attention": "Attention lets each token look at the tokens before it.",
    "fine-tuning": "Fine-tuning trains a finished model a little more on new examples.",
    "pre-training": "Pre-training teaches a new model to predict a lot of text.",
    "a parameter": "A parameter is a number that training can change.",
    "overfitting": "Overfitting means that a model learns its examples by heart.",
    "the temperature": "The temperature says how much chance there is in picking the next token.",
    "an optimizer": "An optimizer changes the weights so that the loss goes down.",
    "a frozen weight": "A frozen weight is not changed by training.",
    "a prompt": "A prompt is the text that a model is asked to go on with.",
    "merging": "Merging adds the product of the LoRA matrices to the weight itself.",
    "warm-up": "Warm-up means that the learning rate starts small and grows.",
    "Llama": "Llama is a family of language models.",
}


@dataclass(frozen=True)
class Person:
    """Somebody in the world; the fields are the words that the sentences use."""

    name: str
    pronoun: str
    possessive: str
    town: str
    job: str
    pet: str
    food: str
    hobby: str


@dataclass(frozen=True)
class Item:
    """A question with one right answer."""

    family: str
    questions: tuple[str, ...]  # ways to ask it; the first is the plainest
    answer: str
    person: Person | None = None  # whom it is about

    @property
    def held_out(self) -> bool:
        """Whether chat training must not ask it."""
        return is_held_out(self.questions[0])


def a(noun: str) -> str:
    """The noun with its indefinite article."""
    return f"{'an' if noun[0].lower() in 'aeiou' else 'a'} {noun}"


def pairs(text: str) -> list[tuple[str, str]]:
    """Splits "big small; hot cold" into pairs, at the first blank of each."""
    return [tuple(pair.split(" ", 1)) for pair in text.split("; ")]


@cache
def people() -> tuple[Person, ...]:
    """Everybody. Odd strides through the tables give each a different mix of the same words."""
    folk = []
    for i, name in enumerate(sorted(WOMEN + MEN)):
        words = ("she", "her") if name in WOMEN else ("he", "his")
        facts = (
            TOWNS[(7 * i + i // 20) % len(TOWNS)],
            JOBS[(9 * i + i // 20 * 3) % len(JOBS)],
            PETS[(4 * i + i // 15) % len(PETS)],
            FOODS[(5 * i + i // 16) % len(FOODS)],
            HOBBIES[(7 * i + i // 15 * 2) % len(HOBBIES)],
        )
        folk.append(Person(name, *words, *facts))
    return tuple(folk)


# For each attribute: what to call it after a name, the answer, and more ways to ask. In the
# questions {X} is a name or a pronoun and {Xs} its possessive.
ATTRIBUTES = {
    "town": (
        "{name} lives in {town}.",
        ("Where does {X} live?", "In which town does {X} live?", "Where is {Xs} home?"),
    ),
    "job": (
        "{name} is {a_job}.",
        ("What does {X} do?", "What is {Xs} job?", "What work does {X} do?"),
    ),
    "pet": (
        "{name} has {a_pet}.",
        ("What pet does {X} have?", "What is {Xs} pet?", "Which animal does {X} have?"),
    ),
    "food": (
        "{name} likes to eat {food}.",
        ("What does {X} like to eat?", "What is {Xs} favourite food?", "What food does {X} like?"),
    ),
    "hobby": (
        "{name} enjoys {hobby}.",
        ("What does {X} enjoy?", "What is {Xs} hobby?", "What does {X} do for fun?"),
    ),
}


def person_item(person: Person, attribute: str) -> Item:
    """The question for one attribute of one person."""
    answer, questions = ATTRIBUTES[attribute]
    words = vars(person) | {"a_job": a(person.job), "a_pet": a(person.pet)}
    asked = tuple(q.format(X=person.name, Xs=person.name + "'s") for q in questions)
    return Item(attribute, asked, answer.format(**words), person)


def follow_up(person: Person, attribute: str) -> tuple[str, ...]:
    """Ways to ask for an attribute of somebody who was just spoken of."""
    questions = ATTRIBUTES[attribute][1]
    asked = [q.format(X=person.pronoun, Xs=person.possessive) for q in questions]
    return tuple(f"And {q[0].lower()}{q[1:]}" for q in asked)


def sums() -> list[Item]:
    """Additions of two numbers up to a sum of 20."""
    return [
        Item(
            "sum",
            (f"What is {x} plus {y}?", f"How much is {x} plus {y}?", f"What is {x} + {y}?"),
            f"{x} plus {y} is {x + y}.",
        )
        for x in range(21)
        for y in range(21 - x)
    ]


def countings() -> list[Item]:
    """Ranges of three to ten numbers, none above 20."""
    return [
        Item(
            "counting",
            (f"Count from {x} to {y}.", f"Please count from {x} to {y}.", f"Count {x} to {y}."),
            ", ".join(map(str, range(x, y + 1))) + ".",
        )
        for x in range(1, 21)
        for y in range(x + 2, min(x + 10, 21))
    ]


def neighbours(kind: str, words: list[str], around: bool) -> list[Item]:
    """What comes after and before a day, a month or a letter."""
    both = zip(words, words[1:] + words[:1] if around else words[1:], strict=False)
    items = []
    for first, then in both:
        after, before = f"{then} comes after {first}.", f"{first} comes before {then}."
        which = (f"What comes after {first}?", f"Which {kind} comes after {first}?")
        items.append(Item("order", which, after))
        which = (f"What comes before {then}?", f"Which {kind} comes before {then}?")
        items.append(Item("order", which, before))
    return items


def words_and_things() -> list[Item]:
    """Opposites, plurals, colours, sounds and kinds."""
    items = []
    for one, other in pairs(OPPOSITES) + [(y, x) for x, y in pairs(OPPOSITES)]:
        asked = (f"What is the opposite of {one}?", f"Tell me the opposite of {one}.")
        items.append(Item("opposite", asked, f"The opposite of {one} is {other}."))
    for one, many in pairs(PLURALS):
        asked = (f"What is the plural of {one}?", f"Tell me the plural of {one}.")
        items.append(Item("plural", asked, f"The plural of {one} is {many}."))
    for thing, colour in pairs(COLOURS):
        asked = (f"What colour is the {thing}?", f"Which colour does the {thing} have?")
        items.append(Item("colour", asked, f"The {thing} is {colour}."))
    for animal, sound in pairs(SOUNDS):
        asked = (f"What does {a(animal)} say?", f"Which sound does {a(animal)} make?")
        items.append(Item("sound", asked, f"{a(animal).capitalize()} says {sound}."))
    for thing, kind in pairs(KINDS):
        asked = (f"What is {a(thing)}?", f"Tell me what {a(thing)} is.")
        items.append(Item("kind", asked, f"{a(thing).capitalize()} is {a(kind)}."))
    return items


def lessons() -> list[Item]:
    """Plain words about training language models."""
    return [
        Item(
            "lesson",
            (f"What is {thing}?", f"Explain {thing}.", f"Can you explain {thing}?"),
            answer,
        )
        for thing, answer in LESSONS.items()
    ]


@cache
def items() -> dict[str, list[Item]]:
    """Every question of the world, by family."""
    everything = [person_item(p, attribute) for p in people() for attribute in ATTRIBUTES]
    everything += sums() + countings() + words_and_things() + lessons()
    everything += neighbours("day", DAYS, True) + neighbours("month", MONTHS, True)
    everything += neighbours("letter", LETTERS, False)
    families: dict[str, list[Item]] = {}
    for item in everything:
        families.setdefault(item.family, []).append(item)
    return families
