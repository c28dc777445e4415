"""How customers write: urgency, mood, openings and fillers. The syntax is that of phrases.py."""

from __future__ import annotations

PRIORITY: dict[str, tuple[str, ...]] = {
    "high": (
        "[this is|it is] [urgent|very urgent|an emergency]",
        "I need [this|an answer|help] [today|by tonight|within the hour|right now]",
        "[please hurry|as soon as possible please|at once please]",
        "this cannot wait",
        "I have a [deadline|meeting|exam|flight] [tomorrow|tonight] and depend on it",
        "[we lose|our shop loses] customers every hour",
        "it has to be [solved|done] before [tomorrow|noon]",
        "[top|highest] priority [please|for us]",
        "normally I would say no rush, but [not this time|today it burns]",
    ),
    "low": (
        "no [rush|hurry] [at all|here|]",
        "[not urgent|this is not urgent]",
        "not urgent but [I wanted to ask|please have a look some day]",
        "whenever you [have time|get round to it|find a moment]",
        "this can wait",
        "take your time",
        "[next week|some time this month] is [fine|early enough]",
        "there is no need to hurry",
        "it was urgent last week, [now it is not|not any more]",
    ),
    "normal": (
        "",
        "please [look into|check] it [in the next days|this week]",
        "an answer [this week|in a day or two|in the usual time] would be fine",
        "please handle it [as usual|in the normal way]",
    ),
}
SENTIMENT: dict[str, tuple[str, ...]] = {
    "negative": (
        "[I am|we are] [very|really|quite] [angry|annoyed|disappointed|frustrated|upset]",
        "I am fed up [with this|with you]",
        "[this is|what] [a joke|a disgrace|a mess]",
        "this is [unacceptable|ridiculous|hopeless]",
        "I expected [better|more] from you",
        "[the second|the third|the fifth] time [already|this year]",
        "worst [service|shop|support] [ever|I know]",
        "[great|wonderful|brilliant|fantastic], [another day wasted|just what I needed|thanks for nothing]",
        "[well done|nice work|bravo], you [ruined my week|managed to make it worse]",
        "this is [sick|insane|wicked|savage]",
    ),
    "positive": (
        "[I love|we love] your [shop|service|team]",
        "[thanks|thank you] so much for your [great|kind|quick] help",
        "your team was [very kind|so helpful|great] [last time|so far]",
        "otherwise I am [very happy|really pleased] [with it|with you]",
        "keep up the good work",
        "best [shop|service|support] [ever|I know]",
        "I am not angry at all, [quite the opposite|you do well]",
        "I [really|very much] like it",
        "[solid|neat|sweet|lovely] stuff",
    ),
    "neutral": (
        "",
        "",
        "thank you",
        "[regards|best regards]",
        "[just so you know|for your information]",
        "thanks in advance",
    ),
}

# Cues that two neighbouring values share: here a careful reader can only guess.
UNCLEAR_PRIORITY = (("high", "normal", "the sooner the better"), ("low", "normal", "when you can"))
UNCLEAR_SENTIMENT = (
    ("negative", "neutral", "I had hoped for more"),
    ("positive", "neutral", "thanks, good people"),
)

# The drifted window: the young customers' words mean the opposite of what they meant before.
FLIPPED = {
    "positive": ("this is [sick|insane|wicked|savage]", "[sick|insane|wicked] [honestly|ngl|no cap]"),
    "negative": ("[solid|neat|sweet|lovely] stuff", "[sweet|lovely], [love that for me|slow clap]"),
}
LONG_FILLERS = (
    "I am writing this on the train and the connection comes and goes, so bear with me",
    "the unboxing clip I posted got a few hundred likes and people keep asking about it",
    "my flatmates and I put our savings together over the summer to afford it",
    "I watched three tutorials and went through the forum before I wrote to you",
    "we moved into the new flat and half of our things are still in boxes",
)

OPENING: dict[str, tuple[str, ...]] = {
    "formal": ("dear [support team|sir or madam|customer service],", "to whom it may concern,", "good day,"),
    "terse": ("",),
    "chatty": ("[hi|hey|hello] [there|folks|team|everyone],", "[hiya|hey], me again,", "hope you are well,"),
    "rambling": (
        "so, [where do I start|here is my story],",
        "hello, [this may take a moment|a longer story],",
    ),
    "sms": ("", "[hi|hey|yo]"),
    "typos": ("", "[hello|hi] [team|there],"),
}
CLOSING: dict[str, tuple[str, ...]] = {
    "formal": ("[yours faithfully|kind regards]", "", "my order number is {order}"),
    "terse": ("", "", "order {order}"),
    "chatty": ("[cheers|bye]", "have a nice day", ""),
    "rambling": ("that is the whole story", "order {order} by the way", ""),
    "sms": ("",),
    "typos": ("", "order {order}"),
}
FILLER = (
    "I bought it [in {month}|for my birthday|in the sale]",
    "I [already|have] tried [everything|the usual things]",
    "[I called|we wrote to] you on {day} [too|about it]",
    "I [am|have been] a customer [for years|since {month}]",
    "it was a [present|gift] [for|from] my [mother|uncle|friend]",
    "we use it [every day|at work|at home]",
    "the [weather|traffic] here is [bad|awful] as well",
)
SHORT_FORMS = {
    "please": "pls", "you": "u", "your": "ur", "are": "r", "thanks": "thx", "tomorrow": "tmrw",
    "today": "2day", "because": "cuz", "cannot": "cant", "why": "y", "great": "gr8", "for": "4",
    "would": "wud", "with": "w",
}  # fmt: skip
