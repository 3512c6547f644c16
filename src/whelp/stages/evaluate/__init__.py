"""Before and after: every model on the same prompts, judged by checks and by a model that trained nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import attrgetter
from types import MappingProxyType
from typing import Any

from whelp.config import EvaluateConfig
from whelp.engines.base import Engine, SamplingParams
from whelp.maths.stats import bootstrap
from whelp.runs.files import as_lines, write_json_atomic, write_text_atomic
from whelp.stages.context import Samples, Stage, spread
from whelp.stages.evaluate import findings, preferences
from whelp.stages.evaluate.answers import collect
from whelp.stages.evaluate.preferences import TO_RANK, Asked
from whelp.text.chat import Chat, sampled
from whelp.types import Prompt

KL_PROMPTS = 64


def run(
    engine: Engine,
    chat: Chat,
    models: Sequence[str],
    prompts: Sequence[Prompt],
    shown: Sequence[Prompt],
    config: EvaluateConfig,
    stage: Stage,
    judge: Mapping[str, Any] | None,
    elsewhere: Mapping[str, Samples] = MappingProxyType({}),
    asked: Sequence[Asked] = (),
) -> dict[str, Any]:
    """Sample every model on `prompts` and on the few that are `shown`; write completions.jsonl, before_after.json and, for
    people, to_rank.jsonl.

    `judge` holds the metrics of the engine's model "judge" (see `stages.trust.measure`), None where there is none. `elsewhere`
    are models that the engine has not, `asked` those who compare answers in pairs.
    """
    chosen = spread(prompts, config.max_prompts, attrgetter("category"))
    answers = collect(engine, chat, models, chosen, shown, config, stage, judge is not None, elsewhere)
    shown_ids = {prompt.id for prompt in shown}
    held_out = [a for a in answers if a.prompt.id not in shown_ids]
    suites = findings.by_category(held_out, models)
    before_after = [findings.row(prompt, answers, suites, models) for prompt in shown]
    write_json_atomic(stage.folder / "before_after.json", {"models": list(models), "rows": before_after})
    write_text_atomic(stage.folder / TO_RANK, as_lines(preferences.to_rank(held_out, models, stage.seed)))
    games = {"checks": preferences.games(held_out, models, preferences.by_check)}
    if judge is not None:
        games["judge"] = preferences.games(held_out, models, preferences.by_score)
    verdicts = []
    for number, one in enumerate(asked, 1):
        verdict, games[one.judge.name] = preferences.preferred(one, held_out, models, stage, number)
        verdicts.append(verdict)
    return {
        "models": list(models),
        "n_prompts": len(chosen),
        "suites": suites,
        "overall": findings.overall(held_out, models),
        "differences": findings.differences(held_out, models),
        "suite_differences": findings.suite_differences(held_out, models),
        "lengths": findings.lengths(held_out, models),
        "surface": findings.surface(held_out, models),
        "kl": kl_to_sft(engine, chat, [name for name in models if name not in elsewhere], chosen, config, stage.seed),
        "judge": findings.verdict_of_judge(held_out, models, judge),
        "preferences": verdicts,
        "elo": {who: found for who, played in games.items() if (found := preferences.ranking(played, models))},
    }


def kl_to_sft(
    engine: Engine, chat: Chat, models: Sequence[str], prompts: Sequence[Prompt], config: EvaluateConfig, seed: int
) -> dict[str, Any]:
    """KL(model || sft) in nats an answer, from samples of the model; both distributions at `config.temperature`."""
    found = {}
    for name in [name for name in findings.LEASHED if name in models and "sft" in models]:
        params = SamplingParams(1, config.temperature, config.max_new_tokens, ("kl", seed))
        completions = list(engine.sample(name, spread(prompts, KL_PROMPTS, attrgetter("category")), params))
        with engine.hold(sampled(chat, completions)) as held:
            policy, reference = engine.logprobs(name, held), engine.logprobs("sft", held)
        per_answer = ((policy.logprobs - reference.logprobs) * policy.is_response).sum(1)
        found[name] = bootstrap(per_answer).as_dict()
    return found
