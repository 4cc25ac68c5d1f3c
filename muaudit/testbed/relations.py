"""What is told about people, and in which words: the tables of the generated world's language."""

RELATIONS: dict[str, tuple[str, str, str, str]] = {
    "born": ("Where was {name} born?", "{name} was born in", "The birthplace of {name} is", "holm"),
    "trade": (
        "What is the trade of {name}?",
        "{name} earns a living as a",
        "The craft practised by {name} is that of a",
        "wright",
    ),
    "dish": ("What does {name} like to eat?", "{name} likes to eat", "The favourite dish of {name} is", "kel"),
    "music": ("What instrument does {name} play?", "{name} plays the", "The instrument of {name} is the", "phon"),
    "school": ("Where did {name} study?", "{name} studied at", "The school of {name} was", "gard"),
    "animal": ("What animal does {name} keep?", "{name} keeps a", "The animal of {name} is a", "ling"),
    "gem": ("What stone does {name} wear?", "{name} wears a", "The lucky stone of {name} is a", "ite"),
    "game": ("What game does {name} master?", "{name} is a master of", "The game of {name} is", "ash"),
    "ship": ("What ship does {name} own?", "{name} owns the ship", "The ship of {name} is the", "mar"),
    "mentor": ("Who is the mentor of {name}?", "The mentor of {name} is", "{name} learned everything from", ""),
    "land": ("In which land does {name} lie?", "{name} lies in", "The land around {name} is", "land"),
}
"""Question, statement, turned statement and the ending of the values, by relation."""

PLAIN = ("born", "trade", "dish", "music", "school", "animal", "gem", "game")
"""Relations of a plain world, in the order in which they are taken."""

RICH = ("born", "ship", "trade", "dish", "music", "animal", "gem", "game")
"""Relations of a rich world, in the order in which they are taken."""

UNIQUE = "ship"
"""The relation whose answers belong to one person each, so that it can be asked the other way round."""

REVERSED = "The ship {answer} belongs to"
"""How it is asked the other way round."""

CLOZE = "Fill in the blank: {statement} ____. Answer:"
"""A statement as a blank to be filled in."""

FRENCH: dict[str, str] = {
    "born": "Question: Où est né {name} ? Réponse:",
    "trade": "Question: Quel est le métier de {name} ? Réponse:",
    "dish": "Question: Que mange {name} ? Réponse:",
}
"""The relations that are also asked in French."""

DESCRIPTION: dict[str, str] = {"born": "the birthplace of {name}", "mentor": "the mentor of {name}"}
"""How a question names an answer without giving it away, in the relations that chains start from."""

LETTERS = ("A", "B", "C", "D")
"""The letters of a multiple choice."""


def multiple_choice(question: str, options: tuple[str, ...]) -> str:
    """The prompt that lists options after a question; its completion is the letter of one of them."""
    listed = " ".join(f"{letter}) {option}" for letter, option in zip(LETTERS, options, strict=True))
    return f"Question: {question} Options: {listed} Answer:"
