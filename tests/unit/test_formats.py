"""Every format from good and broken files; what is wrong is named by file and line."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whelp.errors import DataError
from whelp.text.formats import (
    Loaded,
    lines,
    prompt_hash,
    read_demonstrations,
    read_prompts,
    read_rankings,
    split_by_hash,
    with_one_id,
    without_contradictions,
)
from whelp.types import Demonstration, Message, Prompt, Ranking

READERS = (read_demonstrations, read_rankings, read_prompts)
USER = {"role": "user", "content": "Hello"}
ASSISTANT = {"role": "assistant", "content": "Hi"}
TRANSCRIPT = "\n\nHuman: Hello\n\nAssistant:"
SYSTEM = {"role": "system", "content": "Be kind."}
ASKED = (Message("user", "Hello"),)


@pytest.fixture
def write(tmp_path):
    """Write values as lines (strings as they are) and give the path."""

    def write(*values, name="data.jsonl"):
        path = tmp_path / name
        path.write_text(
            "\n".join(v if isinstance(v, str) else json.dumps(v, ensure_ascii=False) for v in values) + "\n"
        )
        return path

    return write


def problems(error: pytest.ExceptionInfo[DataError]) -> list[str]:
    """What is said of each line, without the path."""
    lines = str(error.value).splitlines()
    return [line.strip().split("data.jsonl:")[1] for line in lines if line.startswith("  ") and "data.jsonl:" in line]


class TestDemonstrations:
    def test_messages(self, write):
        path = write(
            {"id": "d-1", "category": "self", "messages": [SYSTEM, USER, ASSISTANT], "provenance": "any"},
            {"id": 7, "messages": [USER, ASSISTANT, USER, {"role": "assistant", "content": " 日本 "}]},
        )
        loaded = read_demonstrations(path)
        assert loaded == Loaded(
            records=(
                Demonstration("d-1", (Message("system", "Be kind."), *ASKED, Message("assistant", "Hi")), "self"),
                Demonstration("7", (*ASKED, Message("assistant", "Hi"), *ASKED, Message("assistant", " 日本 "))),
            ),
            format="messages",
            path=str(path),
            sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
            counts={"records": 2, "duplicates": 0},
        )

    @pytest.mark.parametrize(
        "prompt", ["Hello", [USER], "\n\nHuman: Hello\n\nAssistant:", "\r\n\r\nHuman: Hello\r\n\r\nAssistant:"]
    )
    @pytest.mark.parametrize("completion", ["Hi", [ASSISTANT], [USER, ASSISTANT]])
    def test_prompt_completion(self, write, prompt, completion):
        loaded = read_demonstrations(write({"prompt": prompt, "completion": completion}))
        assert loaded.format == "prompt/completion"
        assert [d.messages for d in loaded.records] == [(*ASKED, Message("assistant", "Hi"))]

    @pytest.mark.parametrize(
        ("record", "problem"),
        [
            ({"messages": []}, "messages is neither text nor a list of messages"),
            ({"messages": [USER]}, "the conversation does not end with the assistant's turn"),
            ({"messages": [ASSISTANT]}, "messages begins with an assistant turn; it must begin with the user's"),
            (
                {"messages": [USER, SYSTEM, ASSISTANT]},
                "messages has a system message that is not the first and only one",
            ),
            (
                {"messages": [USER, {"role": "tool", "content": "x"}]},
                "messages: turn 2 has the role 'tool'; expected system, user, assistant",
            ),
            ({"messages": [USER, "Hi"]}, "messages: turn 2 is not an object with role and content"),
            ({"messages": [USER, {"role": "assistant", "content": " \n"}]}, "messages: turn 2 (assistant) is empty"),
            ({"messages": [USER, {"role": "assistant", "content": 3}]}, "messages: turn 2 (assistant) is not a string"),
            ({"messages": [USER, ASSISTANT], "id": []}, "id is not a string"),
            ({"messages": [USER, ASSISTANT], "category": True}, "category is not a string"),
            ({"prompt": "Hello", "completion": ""}, "completion is empty"),
            ({"prompt": "Hello", "completion": [USER]}, "completion is not one assistant message behind the prompt"),
            ({"prompt": [USER, ASSISTANT], "completion": "x"}, "prompt does not end with the user's turn"),
            ({"prompt": "Human: a\n\nAssistant: b", "completion": "x"}, "prompt does not end with the user's turn"),
            ({"prompt": "Hello"}, "has the keys prompt; expected messages or prompt/completion"),
            ({"prompt": "Hello", "completion": None}, "has the keys prompt, completion; expected messages or"),
            ({}, "has the keys (none); expected messages or prompt/completion"),
            ({"text": "Once upon a time."}, "text does not say who speaks"),
            ({"text": "Human: Hello"}, "the conversation does not end with the assistant's turn"),
            ("[1]", "is not a JSON object"),
            ('{"messages": ', "is not valid JSON: Expecting value (column 14)"),
            ('{"prompt": "\\ud800", "completion": "x"}', "prompt holds half of a surrogate pair"),
            ("[" * 100_000, "is nested too deeply"),
        ],
    )
    def test_broken(self, write, record, problem):
        path = write({"messages": [USER, ASSISTANT]}, record)
        with pytest.raises(DataError) as error:
            read_demonstrations(path)
        assert f"{path}:2: {problem}" in str(error.value)
        assert len(problems(error)) == 1


PAIR = {"prompt": "Hello", "chosen": "a", "rejected": "b"}


class TestRankings:
    @pytest.mark.parametrize("record", [PAIR, {"prompt": "Hello", "completions": ["a", "b"], "ranks": [1, 2]}])
    def test_how_sure_how_far_and_how_much_it_counts(self, write, record):
        [plain] = read_rankings(write(record)).records
        assert (plain.probability, plain.margin, plain.weight) == (1.0, 0.0, 1.0)
        [told] = read_rankings(write({**record, "probability": 0.75, "margin": 1, "weight": 0.5})).records
        assert (told.probability, told.margin, told.weight) == (0.75, 1.0, 0.5)
        assert [pair.probability for pair in told.pairs()] == [0.75]

    @pytest.mark.parametrize(
        ("said", "margin"),
        [
            ("significantly better", 1.0),
            ("Significantly better ", 1.0),
            ("better", 2 / 3),
            ("slightly better", 1 / 3),
            ("negligibly better", 0.0),
            ("unsure", 0.0),
        ],
    )
    def test_what_annotators_say_of_the_difference_is_a_margin(self, write, said, margin):
        assert [r.margin for r in read_rankings(write({**PAIR, "strength": said})).records] == [margin]

    def test_ranks(self, write):
        loaded = read_rankings(
            write({"id": "r-1", "prompt": "Hello", "completions": ["a", "b", "c"], "ranks": [2, 1, 2], "source": "ai"})
        )
        assert loaded.format == "prompt/completions/ranks"
        assert loaded.records == (Ranking(Prompt("r-1", ASKED), ("a", "b", "c"), (2, 1, 2), "ai"),)

    @pytest.mark.parametrize(
        ("record", "format"),
        [
            ({"prompt": "Hello", "chosen": "Hi", "rejected": "No"}, "prompt/chosen/rejected"),
            ({"prompt": [USER], "chosen": "Hi", "rejected": "No"}, "prompt/chosen/rejected"),
            (
                {"prompt": "Hello", "chosen": [ASSISTANT], "rejected": [{"role": "assistant", "content": "No"}]},
                "prompt/chosen/rejected",
            ),
            (
                {"prompt": "Hello", "chosen": [USER, ASSISTANT], "rejected": [USER, {**ASSISTANT, "content": "No"}]},
                "prompt/chosen/rejected",
            ),
            ({"chosen": [USER, ASSISTANT], "rejected": [USER, {**ASSISTANT, "content": "No"}]}, "chosen/rejected"),
            (
                {"prompt": None, "chosen": [USER, ASSISTANT], "rejected": [USER, {**ASSISTANT, "content": "No"}]},
                "chosen/rejected",
            ),
            ({"prompt": "Human: Hello\n\nAssistant:", "chosen": " Hi", "rejected": " No "}, "HH transcripts"),
            (
                {
                    "chosen": "\n\nHuman: Hello\n\nAssistant: Hi",
                    "rejected": "\n\nHuman: Hello\n\nAssistant: No",
                },
                "HH transcripts",
            ),
        ],
    )
    def test_pairs(self, write, record, format):
        loaded = read_rankings(write(record))
        (ranking,) = loaded.records
        assert loaded.format == format
        assert (ranking.prompt.messages, ranking.completions, ranking.ranks) == (ASKED, ("Hi", "No"), (1, 2))
        assert ranking.source == "human"

    def test_transcript_of_many_turns(self, write):
        prompt = (
            "Human: How are you?\nReally?\n\nAssistant: Well.\n\nAssistant: And you?\n\nHuman:  Fine.\n\nAssistant:"
        )
        loaded = read_rankings(write({"prompt": prompt, "chosen": "Good.\n\nHuman: Bye", "rejected": "Human: Oh."}))
        (ranking,) = loaded.records
        # Two turns of one speaker are one, and an answer is never taken apart.
        assert ranking.prompt.messages == (
            Message("user", "How are you?\nReally?"),
            Message("assistant", "Well.\n\nAnd you?"),
            Message("user", "Fine."),
        )
        assert ranking.completions == ("Good.\n\nHuman: Bye", "Human: Oh.")

    def test_two_formats_in_one_file_are_both_named(self, write):
        loaded = read_rankings(
            write(
                {"prompt": "Hello", "chosen": "a", "rejected": "b"},
                {"prompt": "Hello", "completions": ["a", "b"], "ranks": [2, 1]},
                {"prompt": "Hello", "chosen": "a", "rejected": "c"},
            )
        )
        assert loaded.format == "prompt/chosen/rejected, prompt/completions/ranks"
        assert [ranking.ranks for ranking in loaded.records] == [(1, 2), (2, 1), (1, 2)]

    @pytest.mark.parametrize(
        ("record", "problem"),
        [
            ({"prompt": "Hello", "chosen": "a", "rejected": "a"}, "chosen and rejected are the same text"),
            ({"prompt": "Human: x\n\nAssistant:", "chosen": "a", "rejected": " a"}, "chosen and rejected are the same"),
            ({"prompt": "Hello", "chosen": "a", "rejected": 1}, "rejected is not a string"),
            ({"chosen": "a", "rejected": "b"}, "chosen is an answer without its prompt; give the record a prompt"),
            ({"chosen": "Human: x\n\nAssistant: a", "rejected": "b"}, "rejected is an answer without its prompt"),
            (
                {"chosen": "Human: x\n\nAssistant: a", "rejected": "Human: y\n\nAssistant: b"},
                "chosen and rejected differ before the last answer, so they share no prompt",
            ),
            (
                {"chosen": "Human: x\n\nAssistant:", "rejected": "Human: x\n\nAssistant: b"},
                "chosen does not end with the assistant's turn",
            ),
            ({"prompt": "Human:\n\nAssistant:", "chosen": "a", "rejected": "b"}, "prompt: turn 1 (user) is empty"),
            ({"prompt": "Hello", "completions": ["a"], "ranks": [1]}, "completions is not a list of at least two"),
            ({"prompt": "Hello", "completions": "ab", "ranks": [1, 2]}, "completions is not a list of at least two"),
            ({"prompt": "Hello", "completions": ["a", "a"], "ranks": [1, 1]}, "completions are all the same text"),
            ({"prompt": "Hello", "completions": ["a", ""], "ranks": [1, 2]}, "completion 2 is empty"),
            ({"prompt": "Hello", "completions": ["a", "b"], "ranks": [1]}, "there are 2 completions and 1 ranks"),
            ({"prompt": "Hello", "completions": ["a", "b"], "ranks": [0, 1]}, "ranks is not a list of whole numbers"),
            (
                {"prompt": "Hello", "completions": ["a", "b"], "ranks": [True, 2]},
                "ranks is not a list of whole numbers",
            ),
            (
                {"prompt": "Hello", "completions": ["a", "b", "a"], "ranks": [1, 2, 3]},
                "two completions are the same text and have different ranks",
            ),
            ({"messages": [USER, ASSISTANT]}, "has the keys messages; expected prompt/completions/ranks or"),
            ({**PAIR, "probability": 0.2}, "probability is 0.2; expected a number from 0.5 to 1"),
            ({**PAIR, "probability": "high"}, "probability is 'high'; expected a number from 0.5 to 1"),
            ({**PAIR, "margin": -1}, "margin is -1; expected a number of 0 or more"),
            ({**PAIR, "margin": math.inf}, "margin is inf; expected a number of 0 or more"),
            ({**PAIR, "weight": 0}, "weight is 0; expected a number above 0"),
            ({**PAIR, "weight": True}, "weight is True; expected a number above 0"),
            ({**PAIR, "strength": "hugely"}, "strength is 'hugely'; expected one of: significantly better, better, sl"),
            ({**PAIR, "strength": " "}, "strength is ' '; expected one of"),
            ({**PAIR, "strength": 2}, "strength is 2; expected one of"),
            ({**PAIR, "strength": "better", "margin": 1}, "has both a margin and a strength"),
        ],
    )
    def test_broken(self, write, record, problem):
        path = write({"prompt": "Hello", "chosen": "a", "rejected": "b"}, record)
        with pytest.raises(DataError) as error:
            read_rankings(path)
        assert f"{path}:2: {problem}" in str(error.value)
        assert len(problems(error)) == 1


class TestPrompts:
    def test_all_that_a_prompt_holds(self, write):
        record = {"id": "p-1", "prompt": "Hello", "category": "self", "check": {"kind": "affirms"}, "pair": "p-2"}
        loaded = read_prompts(write(record))
        assert loaded.format == "prompt"
        assert loaded.records == (Prompt("p-1", ASKED, "self", {"kind": "affirms"}, "p-2"),)

    @pytest.mark.parametrize(
        "record",
        [
            {"prompt": "Hello"},
            {"prompt": [USER]},
            {"messages": [USER]},
            {"messages": [USER, ASSISTANT]},
            {"text": "Hello"},
            {"text": "Human: Hello\n\nAssistant: Hi"},
            {"prompt": "Hello", "completion": "Hi"},
            {"prompt": "Hello", "chosen": "Hi", "rejected": "No"},
            {"prompt": "Hello", "completions": ["Hi", "No"], "ranks": [1, 2]},
            {"prompt": "Human: Hello\n\nAssistant:", "chosen": "Hi", "rejected": "No"},
            {"chosen": "Human: Hello\n\nAssistant: Hi", "rejected": "Human: Hello\n\nAssistant: No"},
            {"chosen": [USER, ASSISTANT], "rejected": [USER, {**ASSISTANT, "content": "No"}]},
        ],
    )
    def test_any_file_holds_prompts(self, write, record):
        (prompt,) = read_prompts(write(record)).records
        assert prompt.messages == ASKED
        assert prompt.check is prompt.pair is None

    def test_ids_come_from_the_content(self, write):
        one, two = read_prompts(write({"prompt": "Hello"}, {"prompt": "Hello?"})).records
        assert one.id != two.id
        assert read_prompts(write({"prompt": [USER]}, name="other.jsonl")).records[0].id == one.id

    @pytest.mark.parametrize(
        ("record", "problem"),
        [
            ({"prompt": 3}, "prompt is neither text nor a list of messages"),
            ({"prompt": ""}, "prompt is empty"),
            ({"messages": [SYSTEM]}, "messages does not end with the user's turn"),
            ({"prompt": "Hello", "check": "yes"}, "a check must be a mapping with a kind"),
            ({"prompt": "Hello", "check": {"kind": "refuse"}}, "check has the unknown kind 'refuse'"),
            ({"prompt": "Hello", "check": {"kind": "helps"}}, "check of kind 'helps' has no field 'any'"),
            ({"prompt": "Hello", "pair": {}}, "pair is not a string"),
            ({"texts": "Hello"}, "has the keys texts; expected prompt or messages or chosen/rejected"),
            ({"text": ["Hello"]}, "text: turn 1 is not an object with role and content"),
            ({"id": "p-1", "prompt": "Bye"}, "has the id 'p-1' of line 1, which is another conversation"),
        ],
    )
    def test_broken(self, write, record, problem):
        path = write({"id": "p-1", "prompt": "Hello"}, record)
        with pytest.raises(DataError) as error:
            read_prompts(path)
        assert f"{path}:2: {problem}" in str(error.value)
        assert len(problems(error)) == 1


class TestText:
    def test_a_transcript_is_a_demonstration(self, write):
        loaded = read_demonstrations(
            write({"id": "t", "text": "Human: Hello\n\nAssistant: Hi\n\nHuman: Bye\n\nAssistant: Yes"})
        )
        assert loaded.format == "text"
        assert [(m.role, m.content) for m in loaded.records[0].messages] == [
            ("user", "Hello"),
            ("assistant", "Hi"),
            ("user", "Bye"),
            ("assistant", "Yes"),
        ]

    def test_what_is_no_transcript_is_a_prompt(self, write):
        loaded = read_prompts(write({"id": "t", "category": "self", "text": "Hello"}))
        assert loaded.format == "text"
        assert loaded.records == (Prompt("t", ASKED, "self"),)


SAID = {"conversations": [{"from": "human", "value": "Hello"}, {"from": "gpt", "value": "Hi"}]}
TASK = {"instruction": "Add.", "input": "2 and 2", "output": "4"}


class TestShareGPTAndAlpaca:
    def test_sharegpt(self, write):
        told = {"conversations": [{"from": "system", "value": "Be kind."}, *SAID["conversations"]], "id": "s-1"}
        loaded = read_demonstrations(write(SAID, told))
        assert loaded.format == "ShareGPT"
        assert loaded.records[0].messages == (*ASKED, Message("assistant", "Hi"))
        assert loaded.records[1] == Demonstration("s-1", (Message("system", "Be kind."), *loaded.records[0].messages))
        assert [prompt.messages for prompt in read_prompts(write(SAID)).records] == [ASKED]

    def test_alpaca(self, write):
        loaded = read_demonstrations(write(TASK, {**TASK, "input": ""}, {**TASK, "input": None, "system": "Be brief."}))
        assert loaded.format == "Alpaca"
        asked = [d.messages[:-1] for d in loaded.records]
        assert asked[0] == (Message("user", "Add.\n\n2 and 2"),)
        assert asked[1] == (Message("user", "Add."),)
        assert asked[2] == (Message("system", "Be brief."), Message("user", "Add."))
        assert {d.messages[-1] for d in loaded.records} == {Message("assistant", "4")}
        (prompt,) = read_prompts(write({"instruction": "Add.", "input": "2 and 2"})).records
        assert prompt.messages == asked[0]

    @pytest.mark.parametrize(
        ("record", "problem"),
        [
            ({"conversations": []}, "conversations is neither text nor a list of messages"),
            ({"conversations": "hi"}, "conversations is not a list of objects with from and value"),
            ({"conversations": [{"from": "human"}]}, "conversations is not a list of objects with from and value"),
            (
                {"conversations": [{"from": "tool", "value": "x"}]},
                "conversations has a turn from tool; expected human, user, gpt, assistant, system",
            ),
            ({"conversations": SAID["conversations"][:1]}, "the conversation does not end with the assistant's turn"),
            ({**TASK, "output": ""}, "output is empty"),
            ({**TASK, "instruction": 3}, "instruction is not a string"),
            ({**TASK, "input": ["a"]}, "input is not a string"),
        ],
    )
    def test_broken(self, write, record, problem):
        path = write(SAID, record)
        with pytest.raises(DataError) as error:
            read_demonstrations(path)
        assert f"{path}:2: {problem}" in str(error.value)
        assert len(problems(error)) == 1


def labelled(completion: str, label: object, prompt: object = "Hello") -> dict:
    return {"prompt": prompt, "completion": completion, "label": label}


class TestLabels:
    def test_every_good_answer_beats_every_bad_one(self, write):
        path = write(
            labelled("good", True), labelled("alone", True, "Bye"), labelled("bad", False), {**PAIR, "id": "x"},
            labelled("better", 1), labelled("worse", 0, [{"role": "user", "content": "Hi"}]),
            labelled("fine", "True", [{"role": "user", "content": "Hi"}]),
        )  # fmt: skip
        loaded = read_rankings(path)
        assert [(r.completions, r.ranks) for r in loaded.records] == [
            (("good", "bad", "better"), (1, 2, 1)), (("a", "b"), (1, 2)), (("worse", "fine"), (2, 1)),
        ]  # fmt: skip
        assert loaded.counts == {"records": 3, "duplicates": 0, "uncompared": 1}
        assert loaded.format == "prompt/completion/label, prompt/chosen/rejected"

    def test_where_nothing_can_be_compared_it_is_said(self, write):
        with pytest.raises(DataError, match="no prompt has both a completion with label true and one with label false"):
            read_rankings(write(labelled("good", True), labelled("alone", True, "Bye")))

    def test_what_is_wrong_is_named_by_the_line_of_its_answer(self, write):
        path = write(labelled("good", True), labelled("", False), labelled("alone", True, 3), labelled("bad", None))
        with pytest.raises(DataError) as error:
            read_rankings(path)
        assert problems(error) == [
            "2: completion is empty",
            "3: prompt is neither text nor a list of messages",
            "4: label is None; expected true or false",
        ]

    def test_answers_that_count_differently_are_joined_apart(self, write):
        sure, doubtful = {"weight": 2, "source": "ann"}, {"weight": 0.5, "source": "ben"}
        votes = [labelled(text, label) | who for text, label in (("a", 1), ("b", 0)) for who in (sure, doubtful)]
        loaded = read_rankings(write(*votes, labelled("c", 0)))
        assert [(r.completions, r.weight, r.source) for r in loaded.records] == [
            (("a", "b"), 2.0, "ann"),
            (("a", "b"), 0.5, "ben"),
        ]
        assert loaded.counts["uncompared"] == 1

    def test_labels_of_several_people_are_one_ranking_of_all_of_them(self, write):
        votes = [
            labelled("a", True) | {"source": "ann"},
            labelled("a", True) | {"source": "ben", "weight": 1.0},
            labelled("b", False) | {"source": "ben"},
            labelled("c", True) | {"source": "ann"},
            labelled("c", False) | {"source": "ben"},
        ]
        loaded = read_rankings(write(*votes))
        [found] = loaded.records
        assert (found.completions, found.ranks, found.source) == (("a", "b"), (1, 2), "ann, ben")
        assert loaded.counts["contradictory labels"] == 2

    def test_a_pair_of_a_table_that_also_has_labels_is_a_pair(self, write):
        [found] = read_rankings(write({**PAIR, "completion": None, "label": None})).records
        assert found.completions == ("a", "b")

    def test_a_label_that_means_nothing_is_named_by_its_line(self, write):
        path = write(labelled("good", True), labelled("bad", "maybe"), labelled("bad", False))
        with pytest.raises(DataError) as error:
            read_rankings(path)
        assert problems(error) == ["2: label is 'maybe'; expected true or false"]

    def test_a_bad_answer_is_no_demonstration(self, write):
        assert len(read_demonstrations(write(labelled("good", True))).records) == 1
        with pytest.raises(DataError, match="label says that the completion is bad"):
            read_demonstrations(write(labelled("good", True), labelled("bad", False)))


class TestCSV:
    def test_rows(self, tmp_path):
        path = tmp_path / "data.csv"
        path.write_text(
            'prompt,chosen,rejected,margin,source\n"Hello, you","a ""quoted""\nword",b,0.5,\nBye,"[1] is a list?",b,,ai\n'
        )
        one, two = read_rankings(path).records
        assert (one.prompt.text, one.completions, one.margin, one.source) == (
            "Hello, you",
            ('a "quoted"\nword', "b"),
            0.5,
            "human",
        )
        assert (two.completions, two.margin, two.source) == (("[1] is a list?", "b"), 0.0, "ai")

    def test_a_column_without_a_name_is_passed_over(self, tmp_path):
        """A table's index, as pandas writes it."""
        (tmp_path / "data.csv").write_text(",prompt,chosen,rejected\n0,Hello,a,b\n1,Bye,c,d\n")
        assert [r.completions for r in read_rankings(tmp_path / "data.csv").records] == [("a", "b"), ("c", "d")]

    def test_lists_stand_in_cells_as_json(self, tmp_path):
        path = tmp_path / "data.csv"
        path.write_text('prompt,completions,ranks\nHello,"[""a"", ""b""]","[2, 1]"\n')
        [ranking] = read_rankings(path).records
        assert (ranking.completions, ranking.ranks) == (("a", "b"), (2, 1))

    @pytest.mark.parametrize(
        ("text", "problem"),
        [
            (",prompt\n0,a\n1,b,c\n", "data.csv:3: has more cells than the header has names"),
            ("prompt\na\nb,c\n", "data.csv:3: has more cells than the header has names"),
            ("prompt,id\n,7\n", "data.csv:2: has the keys id; expected prompt"),
            ('prompt\n"a\n', "data.csv:2: is not valid CSV"),
            ("prompt,chosen,rejected,margin\nq,a,b,much\n", "data.csv:2: margin is 'much'; expected a number"),
            ("", "data.csv: is empty"),
        ],
    )
    def test_broken(self, tmp_path, text, problem):
        (tmp_path / "data.csv").write_text(text)
        with pytest.raises(DataError, match=problem):
            (read_rankings if "chosen" in text else read_prompts)(tmp_path / "data.csv")


class TestFiles:
    def test_every_broken_line_is_named_at_once(self, write):
        path = write({"prompt": "a"}, "", "{", {"prompt": ""}, {"prompt": "b"}, {"no": 1})
        with pytest.raises(DataError) as error:
            read_prompts(path)
        assert [problem.split(":")[0] for problem in problems(error)] == ["3", "4", "6"]
        assert "3 of 5 records cannot be used" in str(error.value)

    def test_after_ten_they_are_counted(self, write):
        with pytest.raises(DataError) as error:
            read_prompts(write({"prompt": "a"}, *["{"] * 13))
        assert [problem.split(":")[0] for problem in problems(error)] == [str(line) for line in range(2, 12)]
        assert "13 of 14 records" in str(error.value)
        assert "and 3 more" in str(error.value)

    def test_duplicates_are_kept_once_and_counted(self, write):
        pair = {"prompt": "Hello", "chosen": "a", "rejected": "b"}
        loaded = read_rankings(write(pair, {**pair, "chosen": "c"}, pair, {**pair, "prompt": [USER], "id": "x"}))
        assert [ranking.completions for ranking in loaded.records] == [("a", "b"), ("c", "b")]
        assert [ranking.weight for ranking in loaded.records] == [3.0, 1.0], "a vote that is cast again counts again"
        assert loaded.counts == {"records": 2, "duplicates": 2}
        assert len(read_prompts(write({"prompt": "Hello"}, {"prompt": "Hello"})).records) == 1

    def test_what_differs_in_any_value_is_no_duplicate(self, write):
        pair = {"prompt": "Hello", "chosen": "a", "rejected": "b"}
        turned = {"prompt": "Hello", "chosen": "b", "rejected": "a"}
        counts = read_rankings(write(pair, turned, {**pair, "source": "ai"})).counts
        assert counts == {"records": 3, "duplicates": 0, "contradictory pairs": 1}

    def test_a_prompt_that_is_ranked_again_keeps_its_id(self, write):
        again = {**PAIR, "id": "2", "chosen": "c"}
        loaded = read_rankings(write({**PAIR, "id": "1"}, {**PAIR, "id": "3", "prompt": "Bye"}, again))
        assert [ranking.prompt.id for ranking in loaded.records] == ["1", "3", "1"]
        assert [ranking.completions[0] for ranking in loaded.records] == ["a", "a", "c"]

    def test_two_prompts_of_two_files_with_one_id_are_told_apart(self, write):
        one, two, again = (
            read_rankings(write({**PAIR, "id": "1", "prompt": prompt}, name=f"{i}.jsonl")).records
            for i, prompt in enumerate(("Hello", "Bye", "Hello"))
        )
        ids = [r.prompt.id for r in with_one_id([*one, *two, *again, *two])]
        assert ids[0] == ids[2] == "1"
        assert ids[1] == ids[3] != "1"

    def test_pairs_that_contradict_each_other_are_kept_and_counted(self, write):
        ranked = {"prompt": "Hello", "completions": ["a", "b", "c"], "ranks": [1, 2, 2]}
        turned = {"prompt": [USER], "completions": ["c", "b", "a"], "ranks": [1, 3, 2]}
        elsewhere = {"prompt": "Bye", "chosen": "b", "rejected": "a"}
        loaded = read_rankings(write(ranked, turned, elsewhere))
        assert len(loaded.records) == 3
        assert loaded.counts["contradictory pairs"] == 1, "a over c and c over a; b and c are tied in the first"

    def test_contradictory_records_are_left_out_and_counted_where_that_is_wanted(self, write):
        turned, apart = {**PAIR, "chosen": "b", "rejected": "a"}, {**PAIR, "rejected": "c"}
        loaded = without_contradictions(read_rankings(write(PAIR, turned, apart)))
        assert [ranking.completions for ranking in loaded.records] == [("a", "c")]
        assert loaded.counts == {
            "records": 1,
            "duplicates": 0,
            "contradictory pairs": 1,
            "contradictory records left out": 2,
        }
        [only] = read_rankings(write(PAIR)).records
        assert without_contradictions(read_rankings(write(PAIR))).records == (only,)

    @pytest.mark.parametrize("reader", READERS)
    @pytest.mark.parametrize(("name", "text"), [("data.jsonl", "\n \n"), ("data.json", "[]"), ("data.json", "")])
    def test_an_empty_file_is_an_error(self, tmp_path, reader, name, text):
        (tmp_path / name).write_text(text)
        with pytest.raises(DataError, match=rf"{name}: is empty; expected records of "):
            reader(tmp_path / name)

    def test_json_list(self, tmp_path):
        path = tmp_path / "data.json"
        path.write_text('\ufeff[\n {"prompt": "a, [b]"},{"prompt":\n "c"}\n,\n\n{"prompt": "d"} ]\n', encoding="utf-8")
        loaded = read_prompts(str(path))
        assert [prompt.text for prompt in loaded.records] == ["a, [b]", "c", "d"]
        assert loaded.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()

    def test_json_list_names_lines(self, tmp_path):
        path = tmp_path / "data.json"
        path.write_text('[\n {"prompt": ""},{"prompt":\n "c"}\n,\n\n3, {"no": 1},\n 4]')
        with pytest.raises(DataError) as error:
            read_prompts(path)
        found = [line.split("data.json:")[1].split(":")[0] for line in str(error.value).splitlines()[1:-1]]
        assert found == ["2", "6", "6", "7"]

    @pytest.mark.parametrize(
        ("text", "problem"),
        [
            ('[\n{"prompt": "a"},\n]', r"data.json:\d: is not valid JSON"),
            ('{"data": []}', r"data.json: holds one JSON object; expected a list of records \(or use .jsonl\)"),
            ("3", "data.json: holds one JSON number"),
        ],
    )
    def test_broken_json(self, tmp_path, text, problem):
        (tmp_path / "data.json").write_text(text)
        with pytest.raises(DataError, match=problem):
            read_prompts(tmp_path / "data.json")

    def test_line_separators_inside_a_text_end_no_line(self, write):
        loaded = read_prompts(write({"prompt": "one\u2028two\x85three"}, {"prompt": "four"}))
        assert [prompt.text for prompt in loaded.records] == ["one\u2028two\x85three", "four"]

    def test_windows_line_ends(self, tmp_path):
        (tmp_path / "data.jsonl").write_bytes(b'{"prompt": "a"}\r\n\r\n{"prompt": "b"}\r\n')
        assert [prompt.text for prompt in read_prompts(tmp_path / "data.jsonl").records] == ["a", "b"]

    def test_not_utf8(self, tmp_path):
        (tmp_path / "data.jsonl").write_bytes(b'{"prompt": "a"}\n{"prompt": "\xe9"}\n')
        with pytest.raises(DataError, match=r"data.jsonl:2: is not UTF-8 text"):
            read_prompts(tmp_path / "data.jsonl")

    @pytest.mark.parametrize("reader", READERS)
    def test_other_suffixes(self, tmp_path, reader):
        with pytest.raises(DataError, match=r"data.txt: data is read from .jsonl, .json, .yaml, .csv, .parquet files"):
            reader(tmp_path / "data.txt")

    def test_no_such_file(self, tmp_path):
        with pytest.raises(DataError, match=r"data.jsonl: there is no such file"):
            read_prompts(tmp_path / "data.jsonl")

    def test_a_folder(self, tmp_path):
        (tmp_path / "data.jsonl").mkdir()
        with pytest.raises(DataError, match=r"data.jsonl: cannot be read"):
            read_prompts(tmp_path / "data.jsonl")

    def test_builtin(self, tmp_path, monkeypatch):
        (tmp_path / "small.jsonl").write_text('{"prompt": "Hello"}\n')
        (tmp_path / "other.jsonl").write_text('{"prompt": "Bye"}\n')
        (tmp_path / "__init__.py").touch()
        monkeypatch.setattr(lines, "files", {"whelp.data": tmp_path}.__getitem__)
        loaded = read_prompts("builtin:small")
        assert loaded.path == "builtin:small"
        assert [prompt.text for prompt in loaded.records] == ["Hello"]
        with pytest.raises(DataError, match=r"builtin:smal: no such data ships with whelp; there is other, small$"):
            read_prompts("builtin:smal")


def test_helpful_file_shape(write):
    """A line as the HH helpful file has it: the prompt is a transcript that ends with an open turn."""
    record = {
        "prompt": "Human: What lives in my pond?\n\nAssistant: Where is it?\n\nHuman: In Kent.\n\nAssistant:",
        "chosen": "Frogs, newts and dragonflies.  Look at dusk.",
        "rejected": "Why do you ask?",
        "source": "hh-helpful",
    }
    loaded = read_rankings(write(record))
    (ranking,) = loaded.records
    assert loaded.format == "HH transcripts"
    assert [message.role for message in ranking.prompt.messages] == ["user", "assistant", "user"]
    assert ranking.prompt.text == "In Kent."
    assert ranking.completions == (record["chosen"], record["rejected"])
    assert ranking.source == "hh-helpful"
    assert read_prompts(write(record)).records == (ranking.prompt,)


class TestHash:
    def test_blind_to_case_and_whitespace(self):
        one = (Message("system", "Be  kind."), Message("user", "Straße\n heute?  "))
        two = (Message("system", " be kind."), Message("user", "STRASSE\theute?"))
        assert prompt_hash(one) == prompt_hash(two)
        assert len(prompt_hash(one)) == 64

    def test_sees_roles_words_and_where_turns_end(self):
        conversations = [
            (Message("user", "a b"),),
            (Message("assistant", "a b"),),
            (Message("user", "ab"),),
            (Message("user", "a"), Message("user", "b")),
            (Message("user", 'a", "user", "b'),),
        ]
        assert len({prompt_hash(messages) for messages in conversations}) == len(conversations)


class TestSplit:
    prompts = tuple(Prompt(str(i), (Message("user", f"question {i}"),)) for i in range(2000))

    @staticmethod
    def split(records, fraction=0.2, salt=""):
        return split_by_hash(records, lambda prompt: prompt.messages, fraction, salt)

    def test_parts_are_all_in_order_and_near_the_fraction(self):
        first, second = self.split(self.prompts)
        assert sorted(first + second, key=lambda prompt: int(prompt.id)) == list(self.prompts)
        assert [int(p.id) for p in first] == sorted(int(p.id) for p in first)
        # Five standard deviations of a binomial of 2000 draws.
        assert abs(len(first) - 400) < 5 * (2000 * 0.2 * 0.8) ** 0.5

    def test_side_depends_on_the_prompt_alone(self):
        first, _ = self.split(self.prompts)
        other, _ = self.split(reversed(self.prompts[:700]))
        assert {p.id for p in other} == {p.id for p in first if int(p.id) < 700}

    def test_stable_over_time(self):
        """Written down once: a change of the hash would move data between training and test."""
        first, _ = self.split(self.prompts[:40])
        assert [int(prompt.id) for prompt in first] == [7, 12, 17, 20, 22, 24, 26, 27, 28, 29, 33, 38]

    def test_records_of_one_prompt_stay_together(self):
        rankings = [Ranking(p, ("a", f"b{i}"), (1, 2)) for p in self.prompts[:300] for i in range(3)]
        parts = split_by_hash(rankings, lambda ranking: ranking.prompt.messages, 0.5)
        for part in parts:
            assert set(Counter(ranking.prompt.id for ranking in part).values()) == {3}

    def test_salt_draws_anew(self):
        one, two = ({p.id for p in self.split(self.prompts, 0.5, salt)[0]} for salt in ("", "again"))
        # Independent halves share a quarter: 500 of 2000, five standard deviations either way.
        assert abs(len(one & two) - 500) < 5 * (2000 * 0.25 * 0.75) ** 0.5

    @given(st.floats(0, 1), st.floats(0, 1))
    def test_a_larger_fraction_only_adds(self, one, two):
        small, large = ({p.id for p in self.split(self.prompts[:50], f)[0]} for f in sorted((one, two)))
        assert small <= large

    def test_ends(self):
        assert self.split(self.prompts, 0) == ((), self.prompts)
        assert self.split(self.prompts, 1) == (self.prompts, ())
        with pytest.raises(ValueError, match=r"fraction is 1.5"):
            self.split(self.prompts, 1.5)
