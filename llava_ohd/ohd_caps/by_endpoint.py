"""Writes the 27 wrong captions of a plan with a chat endpoint, one request each, as the paper does.

The paper's three intents (add, remove, alter) in our own words. Every reply is validated; a faulty one is answered with
what is wrong, and after some attempts the rule-based rewriter writes that negative, which the provenance file counts.

The negatives of a row are asked for one after another, so that each can be told from those before it whatever the order
in which the server answers; as many rows are under way as requests are allowed at a time.

Source: arXiv 2410.03176 section 3 and table 13, for the intents.
"""

import asyncio
import random
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from llava_ohd.ohd_caps.by_rule import RuleWriter, Written, distinct
from llava_ohd.ohd_caps.endpoint import Endpoint, EndpointConfig
from llava_ohd.ohd_caps.planning import Plan, Planned
from llava_ohd.ohd_caps.records import Negative, OhdRow
from llava_ohd.ohd_caps.replies import Replies
from llava_ohd.ohd_caps.validation import Intent, clean, fault
from llava_ohd.progress import Progress

__all__ = ["EndpointWriter", "intents"]

_ROLE = (
    "You edit captions of photographs. You reply with one caption and nothing else: on one line, without quotation "
    "marks, without remarks, without alternatives."
)
_ASK = {
    "add": "Caption: {caption}\nObjects: {objects}\nNone of these objects is in the photograph. Write the caption "
    "again so that it names every one of them, in these words. Keep all that the caption says, change as few words as "
    "possible, and let the result read as if it had been written in one go.",
    "remove": "Caption: {caption}\nObjects: {objects}\nWrite the caption again so that it neither names nor implies "
    "any of these objects. Leave the rest as it is, mend the sentence where something is missing now, and name "
    "nothing new.",
    "alter": "Caption: {caption}\nObjects: {objects}\nThe photograph shows these objects. Write the caption again "
    "with one of its objects, colours, numbers, attributes or actions turned into another, so that it no longer fits "
    "the photograph; preferably something about these objects. Change as few words as possible, and do not only leave "
    "words out.",
}


class EndpointWriter:
    """Turns plans into rows with the help of an endpoint.

    Args:
        planned: The plans and what the corpus taught.
        config: Which endpoint.
        out: The file of rows; replies are kept beside it, also when it is finished.
        attempts: Replies per negative, before it is written by rule.
    """

    def __init__(self, planned: Planned, config: EndpointConfig, out: Path, attempts: int = 4) -> None:
        self.endpoint = Endpoint(config, Replies(out.with_name(f"{out.stem}.replies.jsonl")))
        self.attempts, self.lexicon, self.altered = attempts, planned.lexicon, planned.config.altered
        self.rule = RuleWriter(planned)
        self.identity: dict[str, Any] = {
            "kind": "endpoint",
            "model": config.model,
            "sampling": config.sampling,
            "attempts": attempts,
        }

    @property
    def account(self) -> str:
        """What was asked, in one line."""
        replies = self.endpoint.replies
        sent = f"{self.endpoint.requests} requests, {self.endpoint.tokens} tokens in this run"
        return f"{self.endpoint.config.model}: {sent}; {len(replies)} replies in {replies.path}"

    def __call__(self, plans: Sequence[Plan]) -> list[Written]:
        return asyncio.run(self._write_all(plans))

    async def _write_all(self, plans: Sequence[Plan]) -> list[Written]:
        under_way = asyncio.Semaphore(self.endpoint.config.concurrency)
        progress = Progress(f"Asking {self.endpoint.config.model} about {len(plans)} rows", len(plans))
        async with self.endpoint.client() as client:

            async def write(plan: Plan) -> Written:
                async with under_way:
                    written = await self._write(client, plan)
                progress.update(progress.done + 1)
                return written

            # All are awaited even when one fails: what is on its way is paid for, and is kept.
            results = await asyncio.gather(*map(write, plans), return_exceptions=True)
        failed = [result for result in results if isinstance(result, BaseException)]
        if failed:
            raise failed[0]
        return [result for result in results if isinstance(result, Written)]

    async def _write(self, client: Any, plan: Plan) -> Written:
        negatives: list[Negative] = []
        fallbacks = 0
        for index, intent in enumerate(intents(plan, self)):
            siblings = [negative.caption for negative in negatives]
            alike = [n.caption for n in negatives if set(n.objects) == set(intent.objects)]
            text = await self._ask(client, plan, intent, siblings, alike)
            if text is None:
                fallbacks += 1
                rng = random.Random(f"{plan.seed} {index}")
                seen = {text.casefold() for text in (plan.caption, *siblings)}
                negatives.append(distinct(partial(self._by_rule, plan, intent, rng), seen))
            else:
                negatives.append(Negative(text, intent.strategy, intent.objects))
        return Written(OhdRow(plan.image, plan.caption, tuple(negatives), plan.objects), fallbacks)

    async def _ask(
        self, client: Any, plan: Plan, intent: Intent, siblings: Sequence[str], alike: Sequence[str]
    ) -> str | None:
        """Returns a valid caption, or None where no attempt gave one."""
        text = _ASK[intent.kind].format(caption=plan.caption, objects="; ".join(intent.objects))
        if alike:  # few objects, or strategies that chose the same: the same request would have the same reply
            text += "\nIt must differ from: " + " / ".join(alike)
        messages = [{"role": "system", "content": _ROLE}, {"role": "user", "content": text}]
        for _ in range(self.attempts):
            reply = await self.endpoint.ask(client, messages)
            caption = clean(reply)
            reason = fault(caption, intent, plan.caption, siblings, self.lexicon)
            if reason is None:
                return caption
            messages = [
                *messages[:2],
                {"role": "assistant", "content": reply},
                {"role": "user", "content": f"That does not do: {reason}. Reply with the mended caption only."},
            ]
        return None

    def _by_rule(self, plan: Plan, intent: Intent, rng: random.Random) -> Negative:
        if intent.kind == "add":
            return self.rule.insert(plan, intent.objects, intent.strategy, rng)
        return self.rule.remove_or_alter(plan, intent.objects, rng)


def intents(plan: Plan, writer: EndpointWriter) -> list[Intent]:
    """Returns what to do for each negative of a plan: objects that the caption does not name can only be altered."""
    rng = random.Random(f"{plan.seed} intents")
    named = writer.lexicon.named(plan.caption)
    found = [Intent("add", strategy, objects) for strategy, objects in plan.inserted()]
    for objects in plan.removed():
        removable = named.issuperset(objects) and not named <= set(objects)
        if removable and rng.random() >= writer.altered:
            found.append(Intent("remove", "removal", objects))
        else:
            found.append(Intent("alter", "alteration", objects))
    return found
