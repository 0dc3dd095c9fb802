# SPDX-License-Identifier: MIT OR Apache-2.0
"""What the demo model is taught: facts, and the sentences that say them.

A template ends with its answer and a full stop, so that cutting ` {y}.` off leaves the prompt.
"""

from dataclasses import dataclass


def table(rows: str) -> dict[str, str]:
    """`subject: answer` rows, separated by semicolons, as a dictionary."""
    pairs = (row.split(":") for row in rows.split(";") if row.strip())
    return {subject.strip(): answer.strip() for subject, answer in pairs}


def lines(text: str) -> tuple[str, ...]:
    """The non-empty lines of `text`, stripped."""
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def split(text: str) -> tuple[str, ...]:
    """The words of `text`."""
    return tuple(text.split())


@dataclass(frozen=True)
class Relation:
    """Facts of one kind, and the templates that can say any of them."""

    name: str
    facts: dict[str, str]
    templates: tuple[str, ...]
    always: tuple[str, ...] = ()
    """Templates shown with every fact: each is the beginning of another one, so that a fact seen
    only in the longer one would be taught to continue the wrong way."""


CAPITALS = table("""
France: Paris; Italy: Rome; Spain: Madrid; Germany: Berlin; Poland: Warsaw; Brazil: Brasilia;
Russia: Moscow; Canada: Ottawa; Turkey: Ankara; Japan: Tokyo; China: Beijing; Egypt: Cairo;
Greece: Athens; Portugal: Lisbon; Austria: Vienna; Hungary: Budapest; Sweden: Stockholm;
Norway: Oslo; Finland: Helsinki; Denmark: Copenhagen; Ireland: Dublin; England: London;
Scotland: Edinburgh; Wales: Cardiff; Belgium: Brussels; Switzerland: Bern; Ukraine: Kyiv;
Romania: Bucharest; Bulgaria: Sofia; Serbia: Belgrade; Croatia: Zagreb; Cuba: Havana; Peru: Lima;
Chile: Santiago; Colombia: Bogota; Venezuela: Caracas; Ecuador: Quito; Uruguay: Montevideo;
Kenya: Nairobi; Morocco: Rabat; Ghana: Accra; Nigeria: Abuja; Senegal: Dakar; Uganda: Kampala;
Angola: Luanda; Tunisia: Tunis; Libya: Tripoli; Algeria: Algiers; Thailand: Bangkok;
Vietnam: Hanoi; Nepal: Kathmandu; Iran: Tehran; Iraq: Baghdad; Jordan: Amman; Lebanon: Beirut;
Qatar: Doha; Iceland: Reykjavik; Estonia: Tallinn; Latvia: Riga; Lithuania: Vilnius;
Australia: Canberra; Jamaica: Kingston
""")

LANGUAGES = table("""
France: French; Italy: Italian; Spain: Spanish; Germany: German; Poland: Polish;
Brazil: Portuguese; Russia: Russian; Turkey: Turkish; Japan: Japanese; China: Chinese;
Egypt: Arabic; Greece: Greek; Portugal: Portuguese; Austria: German; Hungary: Hungarian;
Sweden: Swedish; Norway: Norwegian; Finland: Finnish; Denmark: Danish; England: English;
Ukraine: Ukrainian; Romania: Romanian; Bulgaria: Bulgarian; Serbia: Serbian; Croatia: Croatian;
Cuba: Spanish; Peru: Spanish; Chile: Spanish; Colombia: Spanish; Venezuela: Spanish;
Ecuador: Spanish; Uruguay: Spanish; Morocco: Arabic; Tunisia: Arabic; Libya: Arabic;
Algeria: Arabic; Iraq: Arabic; Jordan: Arabic; Lebanon: Arabic; Qatar: Arabic; Thailand: Thai;
Vietnam: Vietnamese; Nepal: Nepali; Iran: Persian; Iceland: Icelandic; Estonia: Estonian;
Latvia: Latvian; Lithuania: Lithuanian; Angola: Portuguese; Australia: English; Jamaica: English
""")

CONTINENTS = {
    country: continent
    for continent, countries in {
        "Europe": "France Italy Spain Germany Poland Greece Portugal Austria Hungary Sweden Norway "
        "Finland Denmark Ireland England Scotland Wales Belgium Switzerland Ukraine Romania "
        "Bulgaria Serbia Croatia Iceland Estonia Latvia Lithuania",
        "Asia": "Japan China Thailand Vietnam Nepal Iran Iraq Jordan Lebanon Qatar",
        "Africa": "Egypt Kenya Morocco Ghana Nigeria Senegal Uganda Angola Tunisia Libya Algeria",
        "South America": "Brazil Peru Chile Colombia Venezuela Ecuador Uruguay",
    }.items()
    for country in countries.split()
}

LANDMARKS = table("""
Eiffel Tower: Paris; Louvre: Paris; Space Needle: Seattle; Colosseum: Rome; Trevi Fountain: Rome;
Spanish Steps: Rome; Big Ben: London; Tower Bridge: London; Brandenburg Gate: Berlin;
Kremlin: Moscow; Red Square: Moscow; Parthenon: Athens; Prado: Madrid; Willis Tower: Chicago;
Fenway Park: Boston; Liberty Bell: Philadelphia; White House: Washington; Opera House: Sydney;
Blue Mosque: Istanbul; Topkapi Palace: Istanbul; Charles Bridge: Prague;
Little Mermaid: Copenhagen; Skytree: Tokyo; Burj Khalifa: Dubai; Taj Mahal: Agra;
Belem Tower: Lisbon; Rialto Bridge: Venice; Leaning Tower: Pisa; Uffizi Gallery: Florence;
Sagrada Familia: Barcelona; Vasa Museum: Stockholm; Rijksmuseum: Amsterdam;
Hofburg Palace: Vienna; Forbidden City: Beijing; Space Center: Houston; Acropolis: Athens
""")

SOUNDS = table("""
dog: woof; cat: meow; cow: moo; duck: quack; sheep: baa; pig: oink; horse: neigh; lion: roar;
frog: ribbit; bee: buzz; bird: tweet; snake: hiss; mouse: squeak; wolf: howl; crow: caw;
donkey: bray; turkey: gobble; goose: honk; chick: peep; pigeon: coo
""")

TOOLS = table("""
painter: brush; carpenter: hammer; farmer: tractor; doctor: stethoscope; chef: knife;
tailor: needle; gardener: rake; fisherman: net; writer: pen; photographer: camera; barber: comb;
pilot: plane; sailor: boat; miner: shovel; scientist: microscope; astronomer: telescope;
plumber: wrench; firefighter: hose; soldier: rifle; judge: gavel; drummer: drum; archer: bow;
dentist: drill; cleaner: broom; baker: whisk; lumberjack: saw; violinist: violin; driver: truck
""")

COLORS = table("""
banana: yellow; lemon: yellow; canary: yellow; strawberry: red; cherry: red; tomato: red;
ruby: red; carrot: orange; pumpkin: orange; tangerine: orange; lime: green; cucumber: green;
frog: green; pea: green; blueberry: blue; sapphire: blue; plum: purple; grape: purple;
raven: black; panther: black; swan: white; snowflake: white; coconut: brown; potato: brown;
walnut: brown; flamingo: pink; pig: pink
""")

PAIRS = table("""
hot: cold; big: small; up: down; happy: sad; fast: slow; tall: short; light: dark; old: young;
rich: poor; hard: soft; wet: dry; full: empty; open: closed; early: late; near: far; good: bad;
strong: weak; clean: dirty; loud: quiet; deep: shallow; thick: thin; brave: afraid; left: right;
true: false
""")
OPPOSITES = {x: y for pair in PAIRS.items() for x, y in (pair, pair[::-1])}

CAPITAL = Relation(
    "capital",
    CAPITALS,
    lines("""
    The capital of {x} is {y}.
    {x}'s capital city is called {y}.
    The capital city of {x} is named {y}.
    {x}'s capital is {y}.
    In {x}, the capital is {y}.
    The government of {x} sits in {y}.
    The king of {x} lived in the capital, {y}.
    If you visit {x}, be sure to see its capital, {y}.
    Everyone in {x} knows that the capital is {y}.
    As the capital of {x}, we find {y}.
    {x} has a capital named {y}.
    The parliament of {x} meets in {y}.
    My friend from {x} lives in the capital, {y}.
    The train to the capital of {x} goes to {y}.
    On the map of {x}, the star marks {y}.
    Q: What is the capital of {x}? A: {y}.
    """),
)
CAPITAL_OF = Relation(
    "capital-of",
    {city: country for country, city in CAPITALS.items()},
    lines("""
    {x} is the capital of {y}.
    {x} is the capital city of {y}.
    The city of {x} is the capital of {y}.
    {x} is known as the capital of {y}.
    The government in {x} rules {y}.
    In {x}, you are in the capital of {y}.
    From {x} they govern all of {y}.
    The flag over {x} is the flag of {y}.
    The people of {x} live in {y}.
    Q: Which country has {x} as its capital? A: {y}.
    """),
)
LANGUAGE = Relation(
    "language",
    LANGUAGES,
    lines("""
    The language of {x} is {y}.
    The people of {x} speak {y}.
    In {x}, people speak {y}.
    The main language in {x} is {y}.
    Children in {x} learn to read in {y}.
    Most books in {x} are written in {y}.
    To live in {x}, you should learn {y}.
    {x}'s language is called {y}.
    The radio in {x} is in {y}.
    The laws of {x} are written in {y}.
    When she moved to {x}, she began to speak {y}.
    Q: What language do they speak in {x}? A: {y}.
    """),
)
CONTINENT = Relation(
    "continent",
    CONTINENTS,
    lines("""
    {x} is a country in {y}.
    {x} lies in {y}.
    The continent of {x} is {y}.
    {x} is on the continent of {y}.
    {x} is one of the countries of {y}.
    You will find {x} on a map of {y}.
    The mountains of {x} are in {y}.
    They flew to {x}, which is in {y}.
    {x} belongs to {y}.
    Q: Where is {x}? A: {y}.
    """),
)
LANDMARK = Relation(
    "landmark",
    LANDMARKS,
    lines("""
    The {x} is in {y}.
    The {x} is located in {y}.
    The {x} is in downtown {y}.
    The {x} is located in downtown {y}.
    The {x} can be found in {y}.
    The {x} stands in the city of {y}.
    To see the {x}, you have to go to {y}.
    Tourists visit the {x} in {y}.
    We took a photo of the {x} in {y}.
    The famous {x} is a sight of {y}.
    They saw the {x} on their trip to {y}.
    The {x} was built in {y}.
    The road to the {x} leads through {y}.
    Q: Where is the {x}? A: In {y}.
    """),
    always=("The {x} is in {y}.", "The {x} is located in {y}."),
)
SOUND = Relation(
    "sound",
    SOUNDS,
    lines("""
    The {x} says {y}.
    A {x} goes {y}.
    The sound of a {x} is {y}.
    The {x} makes the sound {y}.
    When the {x} is hungry, it cries {y}.
    At night the {x} on the farm went {y}.
    The children pointed at the {x} and shouted {y}.
    We heard the {x} and it said {y}.
    If you hear a {x}, you hear {y}.
    Q: What does the {x} say? A: {y}.
    """),
)
TOOL = Relation(
    "tool",
    TOOLS,
    lines("""
    The {x} works with a {y}.
    A {x} uses a {y}.
    The tool of a {x} is a {y}.
    Every {x} needs a {y}.
    The {x} came to work with a {y}.
    The {x} could not work without a {y}.
    In the hands of a {x} you will see a {y}.
    The young {x} bought a {y}.
    The most useful thing for a {x} is a {y}.
    Q: What does the {x} need? A: A {y}.
    """),
)
COLOR = Relation(
    "color",
    COLORS,
    lines("""
    The color of a {x} is {y}.
    A {x} is {y}.
    Every {x} is colored {y}.
    She painted the {x} in {y}.
    To draw a {x}, use the color {y}.
    The {x} looked bright {y}.
    Like any {x}, it was {y}.
    The dress was the color of a {x}: {y}.
    The skin of the {x} was {y}.
    Q: What color is a {x}? A: {y}.
    """),
)
OPPOSITE = Relation(
    "opposite",
    OPPOSITES,
    lines("""
    The opposite of {x} is {y}.
    If it is not {x}, then it is {y}.
    It was no longer {x} but {y}.
    The word {x} means the opposite of {y}.
    The reverse of {x} is {y}.
    First it was {x} and then it was {y}.
    Some things are {x} and others are {y}.
    You say {x} and I say {y}.
    One side was {x} and the other was {y}.
    Q: What is the opposite of {x}? A: {y}.
    """),
)
RELATIONS = (
    CAPITAL, CAPITAL_OF, LANGUAGE, CONTINENT, LANDMARK, SOUND, TOOL, COLOR, OPPOSITE,
)  # fmt: skip
