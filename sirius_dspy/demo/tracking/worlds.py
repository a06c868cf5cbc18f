"""The worlds: a crown and hands that are swapped, a coin in boxes, people in rooms, appointments on days."""

from __future__ import annotations

from sirius_dspy.demo.people import PEOPLE
from sirius_dspy.demo.tracking.world import World


CROWN = World(
    name="crown",
    things=("crown",),
    holders=PEOPLE,
    is_swap=True,
    beginning="At first {holder} has it.",
    event="{first} swaps hands with {second}.",
    question="Who has the {thing} at the end?",
    reading="Copy who swaps hands with whom.",
    tracking="Who has it after this event? If the holder does not swap hands, it stays the same.",
    answering="Answer with one name.",
    openings=("After lunch", "Then", "In the hall", "A little later", "At noon", "With a smile", "Now", "In the rain"),
    endings=(
        ", and they laugh",
        ", and it gets dark",
        " near the door",
        ", as agreed",
        " once more",
        ", and all cheer",
    ),
    asides=("{holder} waves.", "{holder} looks on.", "{holder} sings a song.", "The sun is out.", "{holder} is tired."),
)

BOXES = World(
    name="boxes",
    things=("coin", "ring", "pearl", "button", "shell", "key", "nail", "bean", "dice", "medal"),
    holders=(
        "red box",
        "blue box",
        "green box",
        "black box",
        "white box",
        "yellow box",
        "brown box",
        "gray box",
        "pink box",
        "silver box",
        "orange box",
        "purple box",
    ),
    is_swap=False,
    beginning="At first it is in the {holder}.",
    event="The {first} is emptied into the {second}.",
    question="Which box has the {thing} at the end?",
    reading="Copy which box is emptied into which box.",
    tracking="Which box has it after this event? If its box is not emptied, it stays the same.",
    answering="Answer with one box, such as red box.",
    openings=("After lunch", "Then", "In the hall", "A little later", "At noon", "With care", "Now", "Without a word"),
    endings=(", and nobody looks", ", and it gets dark", " with a rattle", ", as agreed", " once more", " in a hurry"),
    asides=("The {holder} is old.", "Someone paints the {holder}.", "The {holder} looks nice.", "The sun is out."),
)

ROOMS = World(
    name="rooms",
    things=PEOPLE,
    holders=(
        "kitchen",
        "hall",
        "garden",
        "attic",
        "cellar",
        "library",
        "garage",
        "porch",
        "office",
        "bedroom",
        "pantry",
        "studio",
    ),
    is_swap=False,
    beginning="At first this person is in the {holder}.",
    event="Everyone in the {first} goes to the {second}.",
    question="In which room is {thing} at the end?",
    reading="Copy who goes where.",
    tracking="Which room is it after this event? If nobody leaves this room, it stays the same.",
    answering="Answer with one room.",
    openings=("After lunch", "Then", "At the bell", "A little later", "At noon", "For a while", "Now", "Quietly"),
    endings=(", and they laugh", ", and it gets dark", " for tea", ", as agreed", " once more", " in a hurry"),
    asides=(
        "It is cold in the {holder}.",
        "The {holder} is large.",
        "A clock ticks in the {holder}.",
        "The sun is out.",
    ),
)

CALENDAR = World(
    name="calendar",
    things=(
        "meeting",
        "dinner",
        "class",
        "exam",
        "concert",
        "party",
        "lecture",
        "game",
        "visit",
        "interview",
        "hearing",
        "picnic",
    ),
    holders=("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"),
    is_swap=False,
    beginning="At first it is on {holder}.",
    event="Everything on {first} moves to {second}.",
    question="On which day is the {thing} at the end?",
    reading="Copy what moves from which day to which day.",
    tracking="Which day is it after this event? If nothing moves from this day, it stays the same.",
    answering="Answer with one day.",
    openings=("After a call", "Then", "By a new plan", "A little later", "At noon", "For once", "Now", "Again"),
    endings=(", and nobody minds", ", and that is fine", " by mistake", ", as agreed", " once more", " in a hurry"),
    asides=("It may rain on {holder}.", "{holder} is a good day.", "The boss likes {holder}.", "The sun is out."),
)
