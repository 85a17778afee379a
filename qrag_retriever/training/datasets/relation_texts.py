"""What can be told of made-up people, firms, towns and works, and how it is told and asked for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Relation:
    """One thing that is told of an entity, which has just one of it.

    Attributes:
        subject: Kind of the entity that it is told of.
        object: Kind of what is told.
        noun: What the object is of the subject, where two may share it ("birthplace"); "" where they cannot.
        statements: Sentences with {s} and {o}.
        phrases: Names of the object by the subject {0}.
        inverse: Names of the subject by the object {0}; only for relations in which an object has one subject.
        questions: Whole questions for the object of a subject {0}.
    """

    subject: str
    object: str
    noun: str
    statements: tuple[str, ...]
    phrases: tuple[str, ...]
    inverse: tuple[str, ...] = ()
    questions: tuple[str, ...] = ()


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


RELATIONS = (
    Relation(
        "person", "person", "mother",
        ("The mother of {s} is {o}.", "{o} is {s}'s mother.", "{o} gave birth to {s} in a cold winter."),
        ("the mother of {0}", "{0}'s mother"),
        questions=("Who gave birth to {0}?",),
    ),
    Relation(
        "person", "person", "teacher",
        ("{s} learned to paint from {o}.", "As a child {s} was taught by {o}.", "{o} was the teacher of {s}."),
        ("the teacher of {0}", "{0}'s teacher", "the one who taught {0}"),
        questions=("Who taught {0}?", "From whom did {0} learn?"),
    ),
    Relation(
        "person", "person", "",
        ("{s} is married to {o}.", "{s} and {o} married in a small church.", "The wife of {s} is {o}."),
        ("the wife of {0}", "the spouse of {0}", "the woman whom {0} married"),
        ("the husband of {0}",),
        ("Whom did {0} marry?", "To whom is {0} married?"),
    ),
    Relation(
        "person", "town", "birthplace",
        ("{s} was born in {o}.", "{s} comes from {o}.", "The birthplace of {s} is {o}, as the register says."),
        ("the birthplace of {0}", "the town where {0} was born", "the town that {0} comes from"),
        questions=("Where was {0} born?", "Where does {0} come from?", "In which town was {0} born?"),
    ),
    Relation(
        "person", "company", "employer",
        ("{s} is employed by {o}.", "{s} has been with {o} for years.", "For a living, {s} does accounts for {o}."),
        ("the firm that employs {0}", "the employer of {0}", "{0}'s employer"),
        questions=("Which firm employs {0}?", "Who is {0}'s employer?", "For which firm does {0} work?"),
    ),
    Relation(
        "person", "school", "school",
        ("{s} went to {o}.", "{s} studied at {o}.", "{s} left {o} with honours."),
        ("the school that {0} went to", "the school of {0}", "the place where {0} studied"),
        questions=("Where did {0} study?", "Which school did {0} attend?", "Where was {0} educated?"),
    ),
    Relation(
        "person", "colour", "favourite colour",
        ("{s} likes everything in {o}.", "The favourite colour of {s} is {o}.", "{s} always wears {o}."),
        ("the favourite colour of {0}", "the colour that {0} always wears"),
        questions=("Which colour does {0} like best?", "What colour does {0} wear?"),
    ),
    Relation(
        "person", "instrument", "instrument",
        ("{s} plays the {o}.", "Every evening {s} practises the {o}.", "{s} is known for solos on the {o}."),
        ("the instrument that {0} plays",),
        questions=("Which instrument does {0} play?", "What does {0} play in the evening?"),
    ),
    Relation(
        "person", "year", "year of birth",
        ("{s}, who was born in {o}, is shy.", "{s} came into the world in {o}.", "The year {o} saw the birth of {s}."),
        ("the year in which {0} was born", "the birth year of {0}"),
        questions=("When was {0} born?", "In what year was {0} born?"),
    ),
    Relation(
        "company", "town", "seat",
        ("{s} is based in {o}.", "The headquarters of {s} are in {o}.", "{s} has its main office in {o}."),
        ("the town where {0} is based", "the seat of {0}", "the town that houses the offices of {0}"),
        questions=("Where is {0} based?", "In which town does {0} have its main office?"),
    ),
    Relation(
        "company", "person", "founder",
        ("{s} was founded by {o}.", "{o} founded {s} with borrowed money.", "{o} is the founder of {s}."),
        ("the founder of {0}", "the person who founded {0}", "{0}'s founder"),
        ("the company that {0} founded", "the firm founded by {0}"),
        ("Who founded {0}?", "By whom was {0} founded?"),
    ),
    Relation(
        "company", "person", "director",
        ("{s} is run by {o}.", "{o} is the head of {s}.", "Since last spring {o} has been in charge of {s}."),
        ("the head of {0}", "the person in charge of {0}", "the director of {0}"),
        ("the company that {0} runs", "the firm headed by {0}"),
        ("Who runs {0}?", "Who is in charge of {0}?"),
    ),
    Relation(
        "company", "product", "main product",
        ("{s} makes {o}.", "{s} is a maker of {o}.", "Most of what {s} earns comes from {o}."),
        ("the main product of {0}", "what {0} makes"),
        questions=("What does {0} make?", "What does {0} sell?", "What is produced by {0}?"),
    ),
    Relation(
        "company", "year", "founding year",
        ("{s} opened its doors in {o}.", "{s} has existed since {o}.", "It was in {o} that {s} began to trade."),
        ("the founding year of {0}", "the year in which {0} was founded"),
        questions=("When was {0} founded?", "Since when has {0} existed?"),
    ),
    Relation(
        "book", "person", "author",
        ("{s} was written by {o}.", "{o} is the author of {s}.", "{o} wrote {s} within one summer."),
        ("the author of {0}", "the writer of {0}", "the person who wrote {0}"),
        ("the book that {0} wrote", "the novel by {0}"),
        ("Who wrote {0}?", "By whom is {0}?"),
    ),
    Relation(
        "book", "company", "publisher",
        ("{s} was published by {o}.", "{o} brought out {s} in two volumes.", "{s} appeared with {o}."),
        ("the publisher of {0}", "the house that published {0}"),
        questions=("Who published {0}?", "Which house brought out {0}?"),
    ),
    Relation(
        "film", "person", "director",
        ("{s} was directed by {o}.", "{o} directed {s}.", "{s} is a film by {o}."),
        ("the director of {0}", "the director of the film {0}"),
        ("the film that {0} directed", "the film by {0}"),
        ("Who directed {0}?", "Who is the director of the film {0}?"),
    ),
    Relation(
        "film", "person", "star",
        ("The leading part in {s} is played by {o}.", "{o} stars in {s}.", "{s} made {o} famous as an actor."),
        ("the star of {0}", "the leading actor of {0}"),
        ("the film that stars {0}",),
        ("Who stars in {0}?", "Who plays the leading part in {0}?"),
    ),
    Relation(
        "film", "book", "",
        ("{s} is based on the book {o}.", "The script of {s} follows {o}.", "{o} was filmed as {s}."),
        ("the book that {0} is based on", "the novel behind {0}"),
        ("the film of {0}", "the film that is based on {0}"),
        ("On which book is {0} based?",),
    ),
    Relation(
        "song", "band", "band",
        ("{s} is a song by {o}.", "{o} recorded {s}.", "{s} was the first hit of {o}."),
        ("the band that recorded {0}", "the performer of {0}"),
        questions=("Which band recorded {0}?", "Who sings {0}?"),
    ),
    Relation(
        "band", "town", "home town",
        ("{o} is the home of {s}.", "{s} was formed in {o}.", "{s} began as a school band in {o}."),
        ("the home town of {0}", "the town where {0} was formed"),
        questions=("Where was {0} formed?", "Which town does {0} come from?"),
    ),
    Relation(
        "band", "person", "singer",
        ("{o} sings with {s}.", "The voice of {s} is {o}.", "{s} has {o} as its singer."),
        ("the singer of {0}", "the voice of {0}"),
        ("the band that {0} sings in", "the band of {0}"),
        ("Who is the singer of {0}?", "Who sings in {0}?"),
    ),
    Relation(
        "painting", "person", "painter",
        ("{s} was painted by {o}.", "{o} painted {s} from memory.", "{s} is a painting by {o}."),
        ("the painter of {0}", "the artist who painted {0}"),
        ("the picture that {0} painted", "the painting by {0}"),
        ("Who painted {0}?", "Whose work is {0}?"),
    ),
    Relation(
        "painting", "museum", "museum",
        ("{s} hangs in {o}.", "{s} can be seen at {o}.", "{o} bought {s} at an auction."),
        ("the museum where {0} hangs", "the museum that has {0}"),
        questions=("Where does {0} hang?", "In which museum can one see {0}?"),
    ),
    Relation(
        "museum", "town", "town",
        ("{s} is a museum in {o}.", "Visitors of {o} should not miss {s}.", "{s} was built in the old part of {o}."),
        ("the town of {0}", "the town where {0} is"),
        questions=("In which town is {0}?", "Where can one visit {0}?"),
    ),
    Relation(
        "museum", "person", "architect",
        ("{s} was designed by {o}.", "The plans of {s} were drawn by {o}.", "{o} is the architect of {s}."),
        ("the architect of {0}", "the person who designed {0}"),
        ("the building that {0} designed", "the museum designed by {0}"),
        ("Who designed {0}?", "Who was the architect of {0}?"),
    ),
    Relation(
        "ship", "person", "captain",
        ("{o} is the captain of {s}.", "{s} sails under {o}.", "{s} is commanded by {o}."),
        ("the captain of {0}", "the person who commands {0}"),
        ("the ship that {0} commands", "the ship of {0}"),
        ("Who commands {0}?", "Under whom does {0} sail?"),
    ),
    Relation(
        "ship", "town", "home port",
        ("The home port of {s} is {o}.", "{s} lies at anchor in {o}.", "{s} was launched at {o}."),
        ("the home port of {0}", "the port where {0} lies"),
        questions=("Where does {0} lie at anchor?", "Which is the home port of {0}?"),
    ),
    Relation(
        "ship", "product", "cargo",
        ("{s} carries {o}.", "The hold of {s} is full of {o}.", "{s} brought a load of {o}."),
        ("the cargo of {0}", "what {0} carries"),
        questions=("What does {0} carry?", "What is in the hold of {0}?"),
    ),
    Relation(
        "school", "town", "town",
        ("{s} is a school in {o}.", "{s} lies at the edge of {o}.", "Pupils of {s} board with families in {o}."),
        ("the town of {0}", "the town where {0} is"),
        questions=("In which town is {0}?", "Where is {0}?"),
    ),
    Relation(
        "school", "person", "head",
        ("The head teacher of {s} is {o}.", "{s} is led by {o}.", "{o} became principal of {s}."),
        ("the principal of {0}", "the head teacher of {0}"),
        ("the school that {0} leads",),
        ("Who leads {0}?", "Who is the principal of {0}?"),
    ),
    Relation(
        "town", "river", "river",
        ("{s} lies by {o}.", "{o} flows through {s}.", "{s} was built at a ford of {o}."),
        ("the river that flows through {0}", "the river at {0}"),
        questions=("Which river flows through {0}?", "By which river does {0} lie?"),
    ),
    Relation(
        "town", "person", "mayor",
        ("The mayor of {s} is {o}.", "{o} was elected mayor of {s}.", "{s} is governed by {o}."),
        ("the mayor of {0}", "{0}'s mayor"),
        ("the town that {0} governs", "the town whose mayor is {0}"),
        ("Who governs {0}?", "Who is the mayor of {0}?"),
    ),
    Relation(
        "town", "region", "region",
        ("{s} is a town in {o}.", "{s} belongs to the region of {o}.", "{o} has its largest market in {s}."),
        ("the region of {0}", "the region in which {0} is"),
        questions=("In which region is {0}?", "To which region does {0} belong?"),
    ),
    Relation(
        "town", "number", "number of people",
        ("{o} people live in {s}.", "{s} has {o} inhabitants.", "At the last count {s} had {o} souls."),
        ("the population of {0}", "the number of people in {0}"),
        questions=("How many people live in {0}?", "How large is {0}?"),
    ),
    Relation(
        "river", "region", "source",
        ("{s} rises in {o}.", "The springs of {s} are in {o}.", "{s} comes down from {o}."),
        ("the region where {0} rises",),
        questions=("Where does {0} rise?", "Where are the springs of {0}?"),
    ),
    Relation(
        "region", "person", "governor",
        ("{o} is the governor of {s}.", "{s} has been ruled by {o} for long.", "{o} speaks for {s} in parliament."),
        ("the governor of {0}", "the ruler of {0}"),
        ("the region that {0} rules",),
        ("Who rules {0}?", "Who is the governor of {0}?"),
    ),
    Relation(
        "region", "product", "chief export",
        ("{s} lives by {o}.", "{s} is famous for its {o}.", "Nothing leaves {s} but {o}."),
        ("what {0} is famous for", "the chief export of {0}"),
        questions=("What is {0} famous for?", "By what does {0} live?"),
    ),
    Relation(
        "team", "person", "coach",
        ("{s} is trained by {o}.", "{o} coaches {s}.", "{o} is the new coach of {s}."),
        ("the coach of {0}", "the trainer of {0}"),
        ("the team that {0} coaches", "the club of {0}"),
        ("Who coaches {0}?", "Who trains {0}?"),
    ),
    Relation(
        "team", "town", "home",
        ("{s} play in {o}.", "The ground of {s} is in {o}.", "{o} cheers for {s}."),
        ("the home of {0}", "the town where {0} play"),
        questions=("Where do {0} play?", "Which town cheers for {0}?"),
    ),
    Relation(
        "person", "team", "club",
        ("{s} signed with {o}.", "{s} is a goalkeeper of {o}.", "{s} scored twice for {o}."),
        ("the team of {0}", "the club that {0} plays for"),
        questions=("For which club does {0} play?", "With which team did {0} sign?"),
    ),
)  # fmt: skip

# Names: a first and a last part of each kind are put together; of towns, rivers and regions without a blank.
FIRST_NAMES = _words(
    "Adela Albin Amira Anselm Anya Arlo Astrid Beate Bela Benno Bettina Boris Callum Camila Carlo Cecil Conrad "
    "Dagny Darius Delia Dorian Edda Edgar Elin Elmo Enid Esme Ezra Farah Fatima Fergus Flora Gideon Gita Goran Gwen "
    "Hakon Hanna Hector Hilda Ida Ilse Imre Ingrid Isaac Ivo Jamal Jasper Joan Judit Kaspar Katya Kenji Kirsten "
    "Lara Leif Leona Lionel Lotte Ludo Magnus Maia Marco Marta Maud Mina Moritz Nadia Neil Nils Olaf Oona Orson Otis "
    "Paloma Percy Petra Quentin Ramona Renata Rhea Rolf Rosa Rufus Sanjay Selma Silas Sonia Stellan Sven Tamar "
    "Theo Tilda Tobias Ursula Vasco Vera Viggo Wanda Wilbur Xenia Yara Yusuf Zelda"
)
LAST_NAMES = _words(
    "Abbott Alder Amsel Arkwright Ashby Bakker Barlow Benedek Birch Blum Bonnet Brandis Burke Calloway Carver Castell "
    "Coombs Cray Dahl Danvers Delgado Dufour Eklund Elphick Emery Engel Fairfax Falk Fenwick Ferrante Finch Frost "
    "Gallagher Garrick Gossens Grant Greaves Haas Halloran Hansson Hartley Hawke Hobbs Hollis Ibarra Ingram Jansen "
    "Jessup Kaminski Keller Kimura Kowal Larkin Laurent Ledger Lindholm Lorimer Maddox Malik Marchetti Marsh Mbeki "
    "Mercer Moreau Nair Nash Nordin Ochoa Oakley Okoye Orlov Osei Palmer Pascoe Pereira Pryce Quist Rahman Ramsey "
    "Reinholt Rossi Rowe Sadler Salazar Sato Schell Selby Sharma Skelton Sorell Stroud Tanaka Teller Thorne Tran "
    "Ulrich Vance Varga Verhoeven Vickers Wallis Weaver Whitlock Winter Wolff Yates Zeller"
)
ADJECTIVES = _words(
    "Amber Ancient Blind Bright Broken Bronze Burning Crimson Crooked Distant Eastern Emerald Empty Fading Fallen "
    "First Flying Forgotten Frozen Gentle Gilded Golden Hidden Hollow Idle Iron Ivory Last Laughing Leaden Little "
    "Lonely Lost Lucky Marble Merry Midnight Morning Northern Olive Painted Pale Patient Polar Proud Quiet Restless "
    "Royal Ruby Rusty Sacred Scarlet Secret Seventh Silent Silver Singing Sleeping Southern Stolen Stormy Sunken "
    "Swift Twisted Velvet Violet Wandering Western White Wild Winter Wise Wooden Young"
)
NOUNS = _words(
    "Anchor Apple Arrow Badger Beacon Bell Bird Bridge Candle Canyon Castle Cedar Circle Cloud Compass Coral Crane "
    "Crown Dagger Dawn Dolphin Dragon Eagle Echo Ember Falcon Feather Fern Field Fountain Fox Garden Gate Glacier "
    "Hammer Harbor Hare Harp Heron Hill Horizon Horse Island Jewel Key Kite Lagoon Lamp Lantern Leaf Lighthouse Lion "
    "Lotus Maple Meadow Mirror Moon Mountain Needle Ocean Orchid Otter Owl Pearl Pilgrim Planet Pony Prairie Quarry "
    "Raven Reef Road Robin Rose Sail Shadow Shell Sparrow Spring Star Stone Swan Tide Tiger Tower Tulip Valley Violin "
    "Voyage Wave Wheel Whale Willow Window Wolf"
)
PLACE_STARTS = _words(
    "Alm Arn Bar Bel Bor Bran Cal Car Cor Dal Dor Dun Eld Em Far Fel Gal Gar Glen Hal Har Hel Hol Ill Jor Kal Kel Kir "
    "Lan Lar Lin Lor Mal Mar Mel Mor Nar Nel Nor Or Pal Pel Per Quel Ral Ren Ros Sal Sel Sor Tal Tar Tor Ul Val Var "
    "Vel Wal Wen Wor Yar Zel"
)
PLACE_MIDDLES = ("", "a", "e", "i", "o", "an", "en", "in", "er", "el", "ol", "am")
PLACE_ENDS = {
    "town": ("bridge", "burg", "by", "cester", "ford", "gate", "ham", "haven", "mouth", "stad", "ton", "wick", "worth"),
    "river": ("da", "ga", "ra", "ne", "sel", "th", "va", "yle", "zer", "bra"),
    "region": ("ia", "land", "mark", "shire", "onia", "via", "istan", "esse"),
}
# {0} is an adjective, {1} a noun, {2} a last name, {3} the beginning of a place.
NAMES = {
    "company": ("{2} & {3}er", "{2} Brothers", "{1} {2}", "{3}{1} Works", "{0} {1} Limited", "{2} Industries"),
    "school": ("{2} College", "{0} {1} Academy", "{3}er School", "{2} Institute"),
    "museum": ("the {2} Gallery", "the {0} {1} Museum", "the {3}er Collection"),
    "book": ("{0} {1}", "The {1} and the {0} One", "A {1} for {2}", "{1}s of {3}or", "The {0} {1}"),
    "film": ("The {0} {1}", "{0} {1}s", "{2}'s {1}", "Return to {3}or", "One {0} {1}"),
    "song": ("{0} {1}", "My {0} {1}", "{1} Song", "Oh {0} {1}"),
    "band": ("The {0} {1}s", "{1} & {1} Club", "{2}'s {1}s", "The {1}s of {3}or"),
    "painting": ("{0} {1}", "{1} with {0} Light", "The {0} {1}", "{1} at Noon"),
    "ship": ("the {0} {1}", "the {1}", "the {0} {2}", "the Queen of {3}or"),
    "team": ("the {3}er {1}s", "the {0} {1}s", "{3}or Rovers", "{3}or United"),
}  # fmt: skip
WORDS = {
    "colour": _words(
        "black blue brown gold green grey lilac orange pink purple red scarlet silver turquoise white yellow"
    ),
    "instrument": _words(
        "accordion banjo bassoon cello clarinet drums flute guitar harp horn lute oboe organ piano trombone trumpet "
        "viola violin"
    ),
    "product": _words(
        "almonds bicycles bricks buttons candles cheese clocks coal copper cotton fertiliser flour "
        "furniture glass honey ink jewellery lamps leather lemons marble medicine mirrors nails olives paper pearls "
        "pianos porcelain radios rice rope salt silk soap steel sugar tea tiles timber tobacco toys umbrellas wheat "
        "wine wool"
    ),
}
