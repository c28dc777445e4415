"""What customers write about, by intent. `[a|b]` is a choice, `{slot}` is filled in: see grammar.py."""

from __future__ import annotations

PROBLEM: dict[str, tuple[str, ...]] = {
    "billing": (
        "I was [charged|billed] [twice|two times|double] for [the|my] {p}",
        "there is [a charge|an extra fee|a strange amount] on my [card|bank statement] for the {p} that I "
        "[do not recognise|cannot explain|never agreed to]",
        "the [invoice|bill] for [the|my] {p} [shows|lists|has] the wrong [amount|total|tax number|address]",
        "you [took|charged|booked] {n} euros too much [for|when I paid] the {p}",
        "the [discount code|voucher|coupon] was not [applied|counted|taken off] when I [paid "
        "for|bought] the {p}",
        "why does the {p} cost more on [my bill|the invoice] than on [the site|your page]",
        "the [monthly instalment|payment plan|rate] for my {p} [went up|is not what we agreed|was "
        "booked too early]",
        "I need [a copy of the invoice|a proper receipt|a corrected invoice] for the {p}",
        "my card was [declined|debited two times] [at the checkout|during payment] of the {p}",
    ),
    "refund": (
        "I [sent back|returned|shipped back] the {p} [two weeks ago|in {month}|long ago] and [still "
        "wait|am waiting] "
        "for [my money|the refund]",
        "[I want|I would like|please give me] my money back for the {p}",
        "when will the [money|refund] for the returned {p} [arrive|be on my card|reach my account]",
        "please [reimburse|refund] [the|me for the] {p}",
        "I was promised [a full refund|my money back] for the {p} and [got nothing|only half of it came]",
        "you have had my [returned|old] {p} back since {day}, [please pay me back|so where is my money]",
        "the refund for the {p} [went to an old card|is {n} euros short|was never booked]",
        "I [gave|handed] the {p} back [in the shop|at the counter], how do I get [the money|what I "
        "paid] back",
    ),
    "delivery": (
        "[the|my] {p} [has not arrived|never arrived|is still not here|was due on {day}]",
        "the tracking of [the|my] {p} [has not moved since {day}|is stuck|shows nothing]",
        "the parcel with the {p} was left [at the wrong house|with a stranger|out in the rain]",
        "[where is|any news about] my {p}, order {order}",
        "the courier [says he delivered|claims to have dropped off] the {p}, but [nothing came|no one rang]",
        "can the {p} be [sent|shipped] to [another address|my office|a pick-up point] [instead|please]",
        "the [box|parcel|package] [was empty|came open], the {p} [was not in it|is missing]",
        "how long does [shipping|transport] of the {p} [take|still take]",
        "the driver [could not find us|came while we were out] with the {p}, when [is the next "
        "attempt|does he return]",
    ),
    "technical": (
        "[the|my] {p} [will not|does not] [turn on|start|charge|connect|update] [any more|at all|since "
        "{day}]",
        "[the|my] {p} keeps [freezing|crashing|dropping the connection|restarting|losing the signal]",
        "[the|my] {p} makes [a clicking noise|a humming sound|a burning smell]",
        "since the [last|latest|new] update [the|my] {p} [is very slow|shows an error|forgets its settings]",
        "[the|my] {p} [gets very hot|overheats|switches off] after {n} minutes",
        "the [light|button|power key] on [the|my] {p} [only blinks red|does nothing|is dead]",
        "I cannot get the {p} to [pair|connect] with [anything|my home network|bluetooth]",
        "error {n} [shows up|appears|comes] whenever I [use|start] the {p}",
        "the battery of [the|my] {p} is [empty after an hour|drained in no time|not charging]",
    ),
    "account": (
        "I cannot [log in|sign in] to [the account|my profile] for the {p}",
        "I forgot the [password|pin] [for|of] [the|my] {p} [app|account]",
        "the reset [mail|link|code] for my {p} account [never comes|has expired|does not work]",
        "please change the [mail address|phone number|user name] on the account of my {p}",
        "[a stranger|someone else] [seems to use|got into] the account of my {p}",
        "my {p} account is [locked|blocked|suspended] [again|since {day}]",
        "the login page of the {p} app [rejects my password|says unknown user|wants a code I never get]",
        "how do I [add my partner|register a second user] to the {p} account",
    ),
    "cancellation": (
        "please [cancel|call off|stop] my order [for|of] the {p}",
        "I [no longer|do not] [want|need] the {p} [I ordered|from order {order}], [please cancel it|do "
        "not send it]",
        "can I still [cancel|withdraw from] the order of the {p} before it ships",
        "I [ordered|bought] the {p} by mistake, please [stop the order|call it off]",
        "please end [my|the] {p} [subscription|care plan|protection plan] [next month|at the end of the "
        "term]",
        "I changed my mind about the {p}, [please drop the order|do not ship it]",
        "[two orders|the same order twice] went through for the {p}, please [cancel|stop] one",
        "I want to get out of the [contract|yearly plan] for the {p}",
    ),
    "exchange": (
        "the {p} [came|arrived] in the wrong [colour|size|version], can I [swap|change] it",
        "I would like to [exchange|swap|trade] the {p} for [another one|a bigger one|the black one]",
        "please send me a [replacement|substitute], the {p} [arrived broken|has a crack|came scratched]",
        "I got [a blue|a used|the small] {p} instead of [the black|a new|the large] one, "
        "[please swap it|I want the right one]",
        "can I [swap|trade in] my {p} for the [newer|larger|other] model",
        "the {p} [is too small|does not fit|is the wrong model], I want to change it for [another "
        "size|the other model]",
        "[the screen is cracked|a part is broken] on my [brand new|new] {p}, I need [another one|an "
        "intact one]",
    ),
    "question": (
        "does the {p} [work|go together] with [the|a] {o}",
        "how long is the [warranty|guarantee] [on|of] the {p}",
        "can the {p} be used [outdoors|abroad|in the rain|by children]",
        "which [cable|charger|battery|adapter] [fits|do I need for] the {p}",
        "is there a [manual|guide|video] for the {p} [in spanish|for beginners]",
        "do you [sell|have] [a case|spare parts|a bag] for the {p}",
        "what is the difference between the two [versions|models] of the {p}",
        "will the {p} be [on sale|back in stock|cheaper] [soon|next month|in {month}]",
        "how [heavy|loud|big] is the {p}",
    ),
}

# Names an intent without asking for it: the reader must tell a mention from a request.
MENTION: dict[str, tuple[str, ...]] = {
    "billing": ("the [invoice|payment] itself was fine", "[I paid|the bill was paid] on time"),
    "refund": ("I am not asking for [a refund|my money back]", "I do not want my money back"),
    "delivery": ("the parcel came [quickly|on time]", "[shipping|delivery] was [fast|no problem]"),
    "technical": ("otherwise it [works|runs] fine", "there is nothing [broken|wrong] with it"),
    "account": ("my account is fine", "logging in works"),
    "cancellation": ("I do not want to cancel", "I will keep the order"),
    "exchange": ("I do not need a replacement", "there is no need to swap it"),
    "question": ("I have read the manual", "I looked at the guide already"),
}

# A mention that would contradict the request: (request, mention).
CONTRADICTIONS = frozenset(
    {
        ("exchange", "technical"),
        ("delivery", "technical"),
        ("refund", "cancellation"),
        ("cancellation", "delivery"),
    }
    | {("exchange", "delivery"), ("refund", "exchange"), ("cancellation", "technical"), ("refund", "billing")}
)

# Another product, which the ticket is not about.
DISTRACTOR = (
    "my {o} [works|runs] [fine|well|as it should]",
    "[unlike|not like] the {o} I [have from you|bought last year]",
    "I also [own|have|use] a {o}, [that one is fine|which is no problem]",
    "[it is not about|I do not mean] the {o}",
    "I bought it together with a {o}",
    "my [neighbour|sister|colleague|brother] [has|uses|likes] a {o}",
    "I had the same with a {o} [once|last year]",
)
