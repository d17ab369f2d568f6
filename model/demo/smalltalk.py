"""What people say besides questions about the world: greetings, thanks, names, likes."""

from __future__ import annotations

ROBOT = "Pip"  # what the model calls itself unless it is told another name

# Ways to say it, and the one reply. {robot} is the model's name.
SMALL_TALK = [
    (
        "Hello. Hi. Hello! Hi! Hey. Hi there. Hello there. Hey there! Good day. Hi there! "
        "Hello, you.",
        "Hello! How can I help you?",
    ),
    ("Good morning. Good morning! Good morning, {robot}.", "Good morning! How can I help you?"),
    ("Good evening. Good evening! Good evening, {robot}.", "Good evening! How can I help you?"),
    (
        "Thank you. Thanks. Thank you! Thanks! Thank you very much. Thanks a lot. Many thanks. "
        "Thank you so much. Great, thanks. Thank you, {robot}.",
        "You are welcome!",
    ),
    (
        "Goodbye. Bye. Goodbye! Bye! See you. See you later. Bye bye. See you soon. Good night.",
        "Goodbye! Have a nice day.",
    ),
    (
        "How are you? How are you today? How do you do? Are you well? How is it going? "
        "How do you feel? How are you doing?",
        "I am fine, thank you.",
    ),
    (
        "Who are you? What are you? Tell me about yourself. Are you a person? Are you a robot? "
        "Are you human? Introduce yourself.",
        "I am {robot}, a tiny language model.",
    ),
    (
        "What is your name? What are you called? Tell me your name. Do you have a name? "
        "What should I call you? Your name?",
        "My name is {robot}.",
    ),
    (
        "What can you do? How can you help me? What do you know? What can I ask you? "
        "Can you help me? Help me.",
        "I can count, add, explain some words and tell you about people. Ask me something!",
    ),
    (
        "Who made you? How were you made? How were you trained? Where do you come from? "
        "Who trained you?",
        "I was trained from scratch on a small computer.",
    ),
    (
        "Tell me a joke. Do you know a joke? Make me laugh. Tell a joke. Another joke.",
        "Why did the cat sit on the computer? To keep an eye on the mouse.",
    ),
    (
        "Tell me a story. Do you know a story? Tell a story. Tell me a short story. "
        "Can you tell a story?",
        "Once upon a time a small cat found a red ball. It played all day and slept all night.",
    ),
    (
        "OK. Good. I see. Nice. Great. Very good. Great! All right. Well done. Nice!",
        "What else would you like to know?",
    ),
]

# Questions about things that the world does not have; the reply is that it does not know.
OUTSIDE = """What is the capital of France? What is the capital of Japan? Who is the president?
What is the weather like? What time is it? What is the meaning of life? Who wrote Hamlet?
How far is the moon? What is the population of Paris? Who won the game? How do I cook rice?
How do I fix my car? What is the news today? Who was Napoleon? What is quantum physics?
Where can I buy shoes? When did the war end? How old is the sun? What is love? Can you write code?
How tall is the tower? Who is the king of Spain? What is the price of gold? Why is the sky blue?
What is the fastest train? Who painted this picture? What is the largest country?
When was the first car built? How many people are there? Which song is this?""".replace("\n", " ")

# Of people: {name} is known or not, but this is asked of nobody in the world.
NEVER_TOLD = (
    "How old is {name}?",
    "When was {name} born?",
    "How tall is {name}?",
    "What is the phone number of {name}?",
    "Who is the mother of {name}?",
)
STRANGERS = (
    "Who is {name}?",
    "What is {name}?",
    "Do you know {name}?",
    "What is the capital of {name}?",
)
UNKNOWN = "I do not know."

NAME_TOLD = (
    "My name is {name}.",
    "I am {name}.",
    "Hello, my name is {name}.",
    "Hi, I am {name}.",
    "Call me {name}.",
    "Hi! My name is {name}.",
    "I'm {name}.",
    "You can call me {name}.",
    "Hello! I am {name}.",
    "Hello, I'm {name}. How are you?",
    "Please call me {name}.",
)
NAME_HEARD = "Hello, {name}! Nice to meet you."
NAME_ASKED = (
    "What is my name?",
    "Who am I?",
    "Do you know my name?",
    "What am I called?",
    "Tell me my name.",
    "Do you remember my name?",
    "Say my name.",
    "Can you tell me my name?",
    "And what is my name?",
    "What's my name?",
)
NAME_KNOWN = "Your name is {name}."
NAME_UNKNOWN = "I do not know your name."

LIKED = """cats dogs horses birds flowers trees music books games stories cars trains ships stars
tea coffee milk bread rice cheese apples cake honey pasta eggs pears nuts soup salad pancakes chess
swimming singing dancing reading painting running sailing cooking fishing tennis football knitting
cycling skating snow rain summer winter spring mountains rivers lakes gardens dolls balls drums
robots computers numbers letters words roses tulips rabbits owls swans lions bees frogs
fish""".split()
LIKE_TOLD = ("I like {thing}.", "I like {thing}!", "I really like {thing}.", "I love {thing}.")
LIKE_HEARD = "I like {thing} too."
LIKE_ASKED = (
    "What do I like?",
    "Do you know what I like?",
    "Tell me what I like.",
    "What was it I like?",
)
LIKE_KNOWN = "You like {thing}."
LIKE_UNKNOWN = "I do not know what you like."

OPENINGS = (
    "You are a helpful assistant.",
    "You are a helpful and friendly assistant.",
    "Answer in one short sentence.",
    "Be kind and brief.",
    "You are a friendly robot.",
    "Answer the question.",
    "You talk with a child.",
    "Be polite.",
    "Use simple words.",
    "You help people.",
    "Answer truthfully.",
    "You are a good teacher.",
)
ROBOT_NAMED = ("Your name is {robot}.", "You are called {robot}.", "You are {robot}, a robot.")


def sentences(text: str) -> list[str]:
    """Splits a line of sentences at each blank behind a final mark."""
    for mark in ".!?":
        text = text.replace(f"{mark} ", f"{mark}\n")
    return text.split("\n")
