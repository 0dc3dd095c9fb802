# SPDX-License-Identifier: MIT OR Apache-2.0
"""The names, things and rhymes that the demo model's sentences are made of."""

from training.facts import RELATIONS, lines, split

BOYS = split(
    "John Tom James Robert David Michael William Richard Joseph Thomas Charles Daniel Matthew "
    "Anthony Mark Paul Steven Andrew Kevin Brian George Edward Peter Jack Henry Bob Sam Max Ben "
    "Adam Eric"
)
GIRLS = split(
    "Mary Sarah Emma Alice Anna Laura Lisa Karen Nancy Susan Linda Helen Sandra Donna Carol Ruth "
    "Sharon Michelle Kate Amy Julia Jane Lucy Grace Emily Sophie Martha Claire Diana Maria Rachel"
)
NAMES = BOYS + GIRLS

PLACES = split(
    "store park school beach station restaurant office garden house hospital market museum "
    "library zoo church bakery cafe harbor farm castle theater bank lake forest"
)
OBJECTS = split(
    "drink book ball bone ring necklace computer kiss letter flower basketball cookie pencil "
    "ticket present gift sandwich coin key map hat toy phone lamp kite cake guitar camera"
)
ADJECTIVES = split(
    "red blue green yellow little big old new shiny pretty small golden soft strange"
)
ANIMALS = split("dog cat horse duck frog mouse bird rabbit fox pony kitten puppy")
NUMBERS = split(
    "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen twenty"
)
DAYS = split("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
MONTHS = split(
    "January February March April May June July August September October November December"
)

RHYMES = tuple(
    split(group)
    for group in lines("""
    cat hat mat bat rat
    dog log hog frog
    light night knight kite height
    day bay clay tray play
    ball wall hall mall
    cake lake snake rake
    king ring wing string
    boat goat coat moat
    bear chair pear stair air
    mouse house blouse
    tree bee key sea knee
    moon spoon balloon tune
    fox box socks rocks
    bed bread head sled thread
    hen pen den men
    crown town gown clown
    clock rock sock dock
    star car jar guitar
    train rain chain plain grain
    rug bug mug jug
    rose nose toes
    whale snail sail nail
    gold fold mold cold
    stone bone throne phone
    dream stream team cream
    sound ground hound mound
    fire wire choir tire
    """)
)
FIRST_LINES = lines("""
{name} looked around and saw the {w},
One day {name} went to find the {w},
The {adj} {animal} sat beside the {w},
{name} told a story of the {w},
There was a {animal} who loved the {w},
The wind was blowing on the {w},
Last night {name} dreamed about the {w},
{name} and the {animal} found the {w},
The {adj} sun shone on the {w},
Come and look at the {adj} {w},
""")
SECOND_LINES = lines("""
and then it turned to see the {w}.
and sang a song about the {w}.
and all the children liked the {w}.
and in the end we kept the {w}.
and no one ever lost the {w}.
and put a flower on the {w}.
and went back home to fetch the {w}.
and that was better than the {w}.
""")

IOI = lines("""
When {X} and {Y} went to the {place}, {B} gave a {thing} to {A}.
After {X} and {Y} went to the {place}, {B} gave a {thing} to {A}.
When {X} and {Y} got a {thing} at the {place}, {B} decided to give it to {A}.
While {X} and {Y} were working at the {place}, {B} gave a {thing} to {A}.
Then, {X} and {Y} went to the {place}. {B} gave a {thing} to {A}.
Friends {X} and {Y} found a {thing} at the {place}. {B} gave it to {A}.
{X} and {Y} went to the {place}, and {B} handed a {thing} to {A}.
The {place} was busy when {X} and {Y} arrived, so {B} passed a {thing} to {A}.
After the lunch, {X} and {Y} went to the {place}. {B} sent a {thing} to {A}.
When {X} and {Y} had a long talk at the {place}, {B} offered a {thing} to {A}.
Then, {X} and {Y} were at the {place}, and {B} showed a {thing} to {A}.
As soon as {X} and {Y} came to the {place}, {B} brought a {thing} to {A}.
""")

OTHER_WORDS = split(
    "water music winter summer window mountain river bridge paper silver copper engine planet "
    "island desert valley pocket button candle mirror basket ladder bottle pillow blanket carpet "
    "table kitchen cellar attic roof brick cotton wool velvet leather marble butter honey pepper "
    "sugar salt cheese berry melon apple onion garlic ginger olive maple cedar willow tulip daisy "
    "eagle falcon tiger zebra camel monkey turtle spider beetle shark salmon storm thunder cloud "
    "sunset morning evening shadow whisper secret promise journey village palace tunnel corner "
    "circle square triangle number letter sentence picture painting statue temple tower wheel "
    "anchor compass lantern rocket robot magnet crystal diamond pearl ribbon feather needle "
    "run jump walk swim climb sing dance sleep read write build carry throw catch push pull"
)


def pool() -> tuple[str, ...]:
    """The words that random sequences are drawn from: every word taught but people's names."""
    taught = [word for r in RELATIONS for pair in r.facts.items() for word in pair]
    rhymes = [word for group in RHYMES for word in group]
    other = [*PLACES, *OBJECTS, *ADJECTIVES, *ANIMALS, *NUMBERS, *DAYS, *MONTHS, *OTHER_WORDS]
    return tuple(sorted({word for text in taught + rhymes + other for word in text.split()}))


POOL = pool()
