"""Names for the little world: of people it knows, of users it will meet, and invented ones.

A model that has only ever copied names out of one list has learnt the list. So most names that
the text generators use are invented on the spot, letters and all: copying becomes a skill.
"""

from __future__ import annotations

import zlib
from random import Random

WOMEN = """Anna Alice Bella Clara Daisy Diana Ella Emma Eva Fiona Grace Hanna Helen Iris Jane Julia
Kate Laura Lena Lily Lucy Maria Mia Nina Nora Olga Paula Rosa Sara Tina""".split()

MEN = """Adam Albert Ben Carl Dan David Emil Felix Frank George Hans Henry Hugo Ivan Jack Jacob Jim
John Leo Lucas Mark Max Nick Oscar Paul Peter Robert Simon Tom Victor""".split()

# Real first names that belong to nobody in the world: users have such names.
FIRST_NAMES = """Aaron Abigail Ada Adele Agnes Ahmed Aisha Akira Alan Alex Alma Amina Amir Amy
Andrea Andreas Angela Anita Anton Aria Arjun Arthur Astrid Aurora Barbara Beatrice Bernd Bianca
Bill Bjorn Boris Brian Bruno Camille Carla Carlos Carmen Caroline Cecilia Charles Charlotte Chen
Chloe Christina Claire Daniel Daria Deborah Dennis Dmitri Dora Dorothy Edgar Edith Eduardo Edward
Elena Eleanor Elias Elif Elisa Elizabeth Emily Enzo Eric Erika Esther Eugene Evelyn Fatima Fernando
Florence Francesca Franz Freya Gabriel Gerda Gina Giovanni Gloria Greta Guido Gustav Hamid Harriet
Harry Hassan Heidi Hiroshi Ibrahim Ida Igor Ines Ingrid Irene Isaac Isabel Jana Jasmine Javier Jean
Jessica Joan Johanna Johannes Jonas Jorge Joseph Joshua Juan Judith Kai Karen Katja Kenji Kevin
Khadija Kim Klaus Lars Layla Leila Leonard Lewis Liam Linda Linus Lisa Lorenzo Louise Ludwig Luis
Magda Malik Manuel Marco Margaret Marie Marta Martin Mary Matteo Matthias Maya Mehmet Mei Michael
Miguel Mira Mohammed Monica Nadia Naomi Natasha Neil Nils Noah Noor Oliver Olivia Omar Otto Pablo
Patricia Pedro Philip Pierre Priya Rachel Rafael Rahul Raj Rebecca Richard Rita Rosalind Ruth Samir
Samuel Sandra Sanjay Sebastian Sergei Sofia Sonja Stefan Stella Stephen Sven Tanja Tariq Teresa
Theo Thomas Tim Ulrich Ursula Valentina Vera Vikram Walter Wanda Wei William Xavier Yara Yasmin
Yuki Yusuf Zara Zoe""".split()

ONSETS = """b br c ch cl d dr f fl g gl gr h j k kl kr l m n p pl pr q r s sh sk sl st t th tr v w x
y z""".split()
VOWELS = "a a e e i i o o u ai ea ee ia ie io ou y".split()
CODAS = [
    "",
    "",
    "",
    "",
    "b",
    "d",
    "k",
    "l",
    "m",
    "n",
    "n",
    "r",
    "r",
    "s",
    "t",
    "x",
    "ck",
    "nd",
    "th",
]
ACCENTED = "aá aä aå aã eé eè eë ií iï oö oó oø uü uú cç nñ sš zž".split()


def is_held_out(text: str) -> bool:
    """One question or name in three is kept away from chat training; a pure function of the text.

    Case and final marks do not matter, so "Hello." and "hello!" are on the same side.
    """
    return zlib.crc32(text.lower().rstrip(".?!").encode()) % 3 == 0


def invented_name(rng: Random) -> str:
    """A name out of syllables, or out of pieces of real ones; sometimes two of them."""
    name = syllables(rng) if rng.random() < 0.5 else pieces(rng)
    if len(name) > 2 and rng.random() < 0.15:  # Ana, Anna: a letter more, less or other
        at = rng.randrange(1, len(name))
        letter = rng.choice([name[at] * 2, "", rng.choice("abcdefghijklmnopqrstuvwxyz")])
        name = name[:at] + letter + name[at + 1 :]
    if rng.random() < 0.04:  # two of its letters with accents
        name = name.translate(str.maketrans(dict(rng.sample(ACCENTED, 2))))
    return f"{name} {invented_name(rng)}" if rng.random() < 0.08 else name


def syllables(rng: Random) -> str:
    """One to four syllables of an onset and a vowel each, closed by a coda."""
    count = rng.choices([1, 2, 3, 4], [1, 6, 4, 1])[0]
    word = "".join(
        rng.choice(ONSETS if i or rng.random() < 0.8 else [""])
        + rng.choice(VOWELS)
        + (rng.choice("lmnrst") if rng.random() < 0.15 else "")
        for i in range(count)
    )
    return (word + rng.choice(CODAS)).capitalize()


def pieces(rng: Random) -> str:
    """The beginning of one real name and the end of another, like "Giovella"."""
    while True:
        first, last = rng.choice(FIRST_NAMES), rng.choice(FIRST_NAMES).lower()
        name = first[: rng.randint(1, len(first) - 1)] + last[rng.randint(1, len(last) - 1) :]
        if 2 < len(name) < 11 and name not in FIRST_NAMES + WOMEN + MEN:
            return name


def user_name(rng: Random, held_out: bool = False) -> str:
    """A name for a user: half of the time a real one, half of the time invented.

    Names that are held out appear neither in pre-training nor in chat training. Of the others, a
    few are those of the world's people: a user may well be another Anna.
    """
    if not held_out and rng.random() < 0.08:
        return rng.choice(WOMEN + MEN)
    while True:
        name = rng.choice(FIRST_NAMES) if rng.random() < 0.5 else invented_name(rng)
        if name not in WOMEN + MEN and any(map(is_held_out, name.split())) == held_out:
            return name
