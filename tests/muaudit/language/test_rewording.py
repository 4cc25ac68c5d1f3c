"""The search for rewordings: it finds what is hidden, keeps to its bounds, and leaves the process and the network alone."""

import os
import random
import subprocess
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from muaudit.errors import EnvironmentFault
from muaudit.language import rewording
from muaudit.language.judging import mentions
from muaudit.language.rewording import Hunt, Rewording, Search

QUESTION = "Where was the famous Kalan Brawick born?"


def test_synonyms_keep_capitals_and_leave_the_subject_alone() -> None:
    assert rewording.synonyms("Where")[0] == "In which place"
    assert rewording.synonyms("kalan") == []
    assert rewording.with_synonyms("Where was Kalan Work born?", "Kalan Work") == (
        "In which place was Kalan Work brought into the world?"
    )
    assert rewording.with_synonyms("Zap?") == "Zap?"


def test_without_textattack_the_error_names_both_ways_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rewording, "available", lambda: False)
    rewording._textattack_parts.cache_clear()
    with pytest.raises(EnvironmentFault, match=r"pip install 'muaudit\[text\]', or set search"):
        hunted(lambda _: 0.0)


class Hidden:
    """Gives the answer away to some wordings; remembers what it was asked."""

    def __init__(self, likelihood: Callable[[str], float]) -> None:
        self.likelihood = likelihood
        self.calls: list[list[str]] = []

    def __call__(self, texts: Sequence[str]) -> list[float]:
        self.calls.append(list(texts))
        return [self.likelihood(text) for text in texts]

    @property
    def asked(self) -> list[str]:
        return [text for call in self.calls for text in call]


def hunted(
    likelihood: Callable[[str], float] | Hidden,
    method: Search = "greedy",
    budget: int = 60,
    *,
    question: str = QUESTION,
    seed: int = 3,
) -> Rewording:
    hidden = likelihood if isinstance(likelihood, Hidden) else Hidden(likelihood)
    hunt = Hunt(question, ("Kalan Brawick",), ("Torvik",), ("the", "Torvik", "year"), seed)
    return rewording.search(hunt, hidden, method=method, query_budget=budget, success=0.5)


@pytest.mark.textattack
class TestSearch:
    @pytest.fixture(autouse=True, scope="class")
    def _textattack(self) -> None:
        pytest.importorskip("nltk")
        if not rewording.available():
            pytest.skip("TextAttack is not installed")

    @pytest.mark.parametrize("method", ["greedy", "beam"])
    def test_a_word_that_hides_the_answer_is_found(self, method: Search) -> None:
        hidden = Hidden(lambda text: 0.01 if "famous" in text else 0.9)
        found = hunted(hidden, method)
        assert found.likelihood == 0.9
        assert "famous" not in found.question
        assert mentions(found.question, ["Kalan"])
        assert found.queries == len(hidden.asked) <= 60
        assert len(hidden.calls) <= 3, "wordings must be scored many at once"

    def test_greedy_search_reaches_what_takes_two_changes_in_a_row(self) -> None:
        found = hunted(lambda text: 0.9 - 0.45 * ("famous" in text) - 0.44 * ("Where" in text))
        assert found.likelihood == pytest.approx(0.9)

    def test_beam_search_leaves_a_dead_end_that_catches_greedy_search(self) -> None:
        def likelihood(text: str) -> float:
            if "renowned" in text:
                return 0.9 if "Where" not in text else 0.2
            return 0.01 if "famous" in text else 0.3  # without the word it looks better, and leads nowhere

        assert hunted(likelihood, "greedy", 400).likelihood == pytest.approx(0.3)
        assert hunted(likelihood, "beam", 400).likelihood == pytest.approx(0.9)

    @pytest.mark.parametrize("method", ["greedy", "beam"])
    @pytest.mark.parametrize("budget", [2, 7, 30])
    def test_the_budget_is_kept_to_the_query(self, method: Search, budget: int) -> None:
        hidden = Hidden(lambda text: 0.1 + 0.001 * len(text))
        found = hunted(hidden, method, budget)
        assert found.queries == budget
        assert len(hidden.asked) <= budget  # a wording that comes twice is asked for once
        assert found.likelihood == max(map(hidden.likelihood, hidden.asked))

    def test_the_best_wording_is_kept_even_if_the_search_moves_on(self) -> None:
        hidden = Hidden(lambda text: 0.4 if text == QUESTION else 0.1)
        assert hunted(hidden, "beam") == Rewording(QUESTION, 0.4, 60)

    @pytest.mark.parametrize("method", ["greedy", "beam"])
    def test_no_wording_holds_the_answer_or_loses_the_subject(self, method: Search) -> None:
        hidden = Hidden(lambda text: 0.1 + 0.001 * len(text))
        hunted(hidden, method, 200)
        assert len(hidden.asked) > 30
        for text in hidden.asked:
            assert not mentions(text, ["Torvik"]), text
            assert mentions(text, ["Kalan Brawick"]) or (mentions(text, ["Kalan"]) and mentions(text, ["Brawick"])), text

    def test_half_of_the_questions_words_stay(self) -> None:
        hidden = Hidden(lambda text: 0.4 / len(text.split()))
        found = hunted(hidden, "beam", 300)
        assert all(len(set(text.rstrip("?").split()) & set(QUESTION.rstrip("?").split())) >= 4 for text in hidden.asked)
        assert len(found.question.split()) == 4

    def test_what_is_known_at_once_costs_one_query(self) -> None:
        assert hunted(lambda _: 0.8) == Rewording(QUESTION, 0.8, 1)

    @pytest.mark.parametrize("method", ["greedy", "beam"])
    @pytest.mark.parametrize("question", ["???", "Kalan Brawick?", "Wo wurde Kalan Brawick geboren, und warum (dort)?"])
    def test_questions_with_little_to_change(self, method: Search, question: str) -> None:
        assert hunted(lambda _: 0.1, method, question=question).queries >= 1

    @pytest.mark.parametrize("method", ["greedy", "beam"])
    def test_a_seed_gives_one_search_and_global_generators_are_left_alone(self, method: Search) -> None:
        random.seed(11)
        np.random.seed(11)
        before = random.getstate(), np.random.get_state()[1].tolist()
        asked = []
        for seed in (5, 5, 6):
            hidden = Hidden(lambda text: 0.1 + 0.001 * len(text))
            hunted(hidden, method, seed=seed)
            asked.append(hidden.calls)
            assert random.getstate() == before[0]
        assert asked[0] == asked[1] != asked[2]
        assert np.random.get_state()[1].tolist() == before[1]

    def test_without_a_network_nothing_is_fetched_and_nothing_left_behind(self, tmp_path: Path) -> None:
        """In a process of its own, whose sockets refuse, with a home of its own and another hash seed."""
        script = """
            import logging, os, random, socket, sys
            import numpy as np

            def refuse(*args, **kwargs):
                print("a connection was tried", args)
                raise OSError("no network")

            socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
            import transformers
            mine = logging.getLogger("mine")
            from muaudit.language.rewording import Hunt, search
            environment, state, numpys = dict(os.environ), random.getstate(), np.random.get_state()[1].tolist()
            hunt = Hunt("Where was the famous Kalan Brawick born?", ("Kalan Brawick",), ("Torvik",), ("the", "year"), 3)
            found = search(hunt, lambda texts: [0.1 + 0.001 * len(text) for text in texts], method="greedy", query_budget=30,
                           success=0.5)
            assert dict(os.environ) == environment, set(os.environ.items()) ^ set(environment.items())
            assert random.getstate() == state and np.random.get_state()[1].tolist() == numpys
            assert not mine.disabled
            import nltk
            assert not any("muaudit" in path for path in nltk.data.path)
            print(found.question)
        """
        home = tmp_path / "home"
        home.mkdir()
        variables = {
            "HOME": str(home),
            "MPLCONFIGDIR": str(tmp_path / "matplotlib"),
            "PYTHONHASHSEED": "5",
            "TMPDIR": str(tmp_path),
        }
        ran = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(script)],
            env={key: value for key, value in os.environ.items() if not key.startswith(("XDG", "HF_", "TA_"))} | variables,
            capture_output=True,
            text=True,
            check=False,
        )
        assert ran.returncode == 0, ran.stderr
        here = hunted_like_the_script()
        assert ran.stdout.splitlines() == [here.question]
        assert "textattack" not in ran.stderr
        assert [path.name for path in home.rglob("*") if path.is_file()] == []
        assert [path.name for path in tmp_path.iterdir() if path.name.startswith("muaudit-textattack")] == []


def hunted_like_the_script() -> Rewording:
    hunt = Hunt(QUESTION, ("Kalan Brawick",), ("Torvik",), ("the", "year"), 3)
    hidden = Hidden(lambda text: 0.1 + 0.001 * len(text))
    return rewording.search(hunt, hidden, method="greedy", query_budget=30, success=0.5)
