"""How one thing is described by another ("the state where X is located"), and what is asked of a thing."""

from __future__ import annotations

import re

# What stands before a name -> how the name's thing is described by what the sentence is about ({0}); {1} is what the
# thing is ("city"). The first that fits counts.
DESCRIPTIONS: tuple[tuple[re.Pattern[str], tuple[str, ...]], ...] = tuple(
    (re.compile(rf"(?:{before})(?: the| a| an)?$", re.IGNORECASE), tuple(phrases.split("|")))
    for before, phrases in (
        (
            r"\bborn\b[^.]{0,60}\b(?:in|at|near|,)",
            "the {1} where {0} was born|the birthplace of {0}|{0}'s place of birth|the {1} {0} was born in",
        ),
        (
            r"\b(?:died|death)\b[^.]{0,40}\b(?:in|at|near)",
            "the {1} where {0} died|the place of death of {0}|{0}'s place of death|the {1} {0} died in",
        ),
        (r"\bdirected[^.]{0,25}\bby", "the director of {0}|{0}'s director|the person who directed {0}"),
        (
            r"\b(?:written|authored|book|novel|poem)[^.]{0,25}\bby",
            "the author of {0}|the writer of {0}|the person who wrote {0}",
        ),
        (r"\bproduced[^.]{0,25}\bby", "the producer of {0}|{0}'s producer|the one who produced {0}"),
        (
            r"\b(?:album|single|song|performed|recorded|sung|EP)\b[^.]{0,60}\b(?:by|of|from|artist|group|band|singer)",
            "the performer of {0}|the artist that recorded {0}|the singer of {0}|the one who made {0}",
        ),
        (r"\b(?:composed|scored)[^.]{0,25}\bby", "the composer of {0}|the person who composed {0}"),
        (
            r"\b(?:released|distributed|published|issued|label)\b[^.]{0,40}\b(?:by|through|on|with|label)",
            "the publisher of {0}|the company that published {0}|the record label of {0}|{0}'s distributor",
        ),
        (
            r"\b(?:founded|established|created|developed|designed|invented|built|manufactured|made)\b[^.]{0,25}\bby",
            "the founder of {0}|the creator of {0}|the developer of {0}|the one who made {0}|the manufacturer of {0}",
        ),
        (
            r"\b(?:owned|operated|managed|run|acquired|bought)[^.]{0,25}\bby",
            "the owner of {0}|{0}'s owner|the company that owns {0}|the operator of {0}",
        ),
        (
            r"\b(?:starring|stars|starred|cast)\b[^.]{0,80}",
            "the star of {0}|a cast member of {0}|the one who played in {0}",
        ),
        (
            r"\b(?:member of|played for|plays for|playing for|joined|signed [^.]{0,20}|team|club)",
            "the team {0} played for|{0}'s team|the group that {0} was a member of|{0}'s club",
        ),
        (
            r"\b(?:educated|studied|attended|graduated|degree|student|alumnus)\b[^.]{0,40}",
            "the school {0} attended|the university where {0} was educated|{0}'s alma mater",
        ),
        (
            r"\b(?:taught|professor|worked|works|employed|lecturer|teacher)\b[^.]{0,30}\b(?:at|for|by|with)",
            "the employer of {0}|{0}'s employer|the {1} where {0} worked",
        ),
        (
            r"\b(?:married|wife|husband|spouse|wed)\b[^.]{0,25}",
            "the spouse of {0}|{0}'s spouse|the person {0} married|the husband of {0}|the wife of {0}",
        ),
        (r"\b(?:son|daughter|child) of", "the father of {0}|the mother of {0}|the parent of {0}|{0}'s parent"),
        (r"\b(?:father|mother) of", "the child of {0}|{0}'s child|the son of {0}|the daughter of {0}"),
        (r"\b(?:brother|sister) of", "the sibling of {0}|{0}'s sibling"),
        (r"\b(?:named|called) (?:after|for)", "the namesake of {0}|what {0} is named after|the one {0} is named after"),
        (
            r"\b(?:headquartered|based|headquarters|headquarters are) (?:in|at)",
            "the {1} where {0} is based|the headquarters location of {0}|the {1} where {0} is headquartered",
        ),
        (
            r"\b(?:capital|part|district|region|province|suburb|division|subsidiary|branch) of",
            "the {1} that {0} is part of|the {1} {0} belongs to|the {1} where {0} is found",
        ),
        (
            r"\b(?:in|at|near|of)",
            "the {1} where {0} is located|the location of {0}|the {1} where {0} is found|the {1} {0} is in|"
            "the {1} that contains {0}|the {1} of {0}|{0}'s {1}",
        ),
        (r"\bby", "the maker of {0}|the {1} behind {0}|the one responsible for {0}"),
        (r"\b(?:with|and|as)", "the {1} connected with {0}|the {1} associated with {0}|{0}'s {1}"),
        (r"", "the {1} of {0}|the {1} that {0} is known for|the {1} mentioned with {0}|{0}'s {1}"),
    )
)
# What a thing is called whose kind is not told.
KINDS_OF_PLACES = ("place", "city", "country", "state", "area", "county")
KINDS = ("one", "thing", "name", "person", "group")

# Words of a paragraph -> what may be asked of its thing, {} in the question.
ASKED: tuple[tuple[re.Pattern[str], tuple[str, ...]], ...] = tuple(
    (re.compile(rf"\b(?:{words})\b", re.IGNORECASE), tuple(questions.split("|")))
    for words, questions in (
        (
            r"born",
            "When was {} born?|Where was {} born?|What is the birthplace of {}?|What is {}'s date of birth?|"
            "In what year was {} born?",
        ),
        (r"died|death", "When did {} die?|Where did {} die?|What was the cause of death of {}?"),
        (r"population|inhabitants", "What is the population of {}?|How many people live in {}?"),
        (
            r"founded|established|formed",
            "When was {} founded?|Who founded {}?|When was {} formed?|In what year was {} established?",
        ),
        (r"capital", "What is the capital of {}?|{} is the capital of what?"),
        (r"county", "What county is {} in?|In which county is {} located?|What county shares a border with {}?"),
        (
            r"located|situated|lies|district|province|region",
            "Where is {} located?|What is {} a part of?|What region is {} in?|In which district is {}?",
        ),
        (r"married|wife|husband", "Who is the spouse of {}?|Who did {} marry?|Who is {} married to?"),
        (r"label|records", "What record label is {} signed to?|What is the record label of {}?"),
        (r"released|premiered|aired", "When was {} released?|When did {} come out?|When did {} first air?"),
        (r"named (?:after|for)", "Who is {} named after?|What is {} named for?"),
        (r"award|won|prize", "What award did {} win?|What did {} win?|How many awards did {} receive?"),
        (r"played|plays|club|football|league", "What team does {} play for?|In which league does {} play?"),
        (r"university|college|school", "Where did {} study?|Where was {} educated?|What school did {} go to?"),
        (r"directed", "Who directed {}?|Who is the director of {}?"),
        (r"written|author|novel|book", "Who wrote {}?|Who is the author of {}?"),
        (r"owned|owner|company", "Who owns {}?|Who is the owner of {}?|Where is {} headquartered?"),
        (
            r"president|mayor|governor|minister|chairman",
            "Who is the head of {}?|Who was in charge of {}?",
        ),
        (r"river|lake|sea|ocean", "What body of water is near {}?|Where does {} end?|Where does {} start?"),
        (r"war|battle|army|independence", "When did {} begin?|When did {} end?|When did {} become independent?"),
        (r"character|actor|actress|film|series", "Who plays the lead in {}?|Who played in {}?|What is {} about?"),
        (r"language|spoken", "What language is spoken in {}?"),
        (r"religion|church", "What religion is practised in {}?|What is the religion of {}?"),
        (r"airport|station", "What is the airport of {}?|Which station serves {}?"),
    )
)
ASKED_OF_ALL = ("What is {} known for?", "What is {}?", "What happened to {}?", "Why is {} important?")
