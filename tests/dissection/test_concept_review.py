"""The command `concepts`: what is wrong with a set, and an answer that becomes one."""

import json

import pytest

from emojax import cli
from emojax.data import concepts
from emojax.dissection.concept_review import review


def concepts_verb(capsys, *args):
    code = cli.main(["concepts", *map(str, args)])
    return code, *capsys.readouterr()


def test_lines_that_look_alike_are_duplicates():
    entries = concepts.entries("Smile\nSm\u0456le\nSmile\n\n", "file")
    assert [tuple(problem) for problem in review(entries)] == [
        (2, "Sm\u0456le", "duplicate", "looks like 'Smile', first on line 1"),
        (3, "Smile", "duplicate", "first on line 1"),
    ]


@pytest.mark.slow
def test_concept_review(capsys, tmp_path, clip_folder):
    path = tmp_path / "c.txt"
    path.write_text(f"Smile\n\nFrown\nsmile\nSmile\n{'long ' * 40}\n\n")
    code, out, _ = concepts_verb(capsys, path, "--out", tmp_path / "a")
    assert code == 0
    assert "4 concepts, none with emotions, 2 problems" in out
    assert "line 2: blank" in out
    assert "line 5: duplicate 'Smile' (first on line 1)" in out
    assert "were not looked at" in out
    code, out, _ = concepts_verb(
        capsys, path, "--clip.path", clip_folder, "--out", tmp_path / "b", "--synonym", "0.9999"
    )
    assert code == 0
    assert "near synonym 'smile' (cosine 1.000 with 'Smile' on line 1)" in out
    assert "line 6: too long" in out
    assert "tokens, 40 fit" in out
    problems = (tmp_path / "b" / "problems.csv").read_text().splitlines()
    assert [line.split(",")[2] for line in problems] == [
        "problem",
        "blank",
        "near_synonym",
        "duplicate",
        "too_long",
    ]
    agreement = (tmp_path / "b" / "agreement.csv").read_text().splitlines()
    assert agreement[0] == "concept,angry,disgust,fear,happy,sad,surprise,neutral,closest"
    assert len(agreement) == 4
    assert "concepts" in json.loads((tmp_path / "b" / "manifest.json").read_text())["settings"]


def test_prompt_and_answer(capsys, tmp_path):
    code, out, _ = concepts_verb(capsys, "--prompt")
    assert code == 0
    assert "angry, disgust, fear, happy, sad, surprise, neutral" in out
    answer = tmp_path / "answer.txt"
    answer.write_text(
        "1. **Raised Brows**: Surprise\n\n- Jaw Drop: surprise, fear.\n* Lips: pressed: angry\n"
    )
    code, out, _ = concepts_verb(capsys, "--answer", answer, "--out", tmp_path / "a")
    assert code == 0
    assert (tmp_path / "a" / "concepts.csv").read_text() == (
        "concept,emotions\nRaised Brows,surprise\nJaw Drop,surprise;fear\nLips: pressed,angry\n"
    )
    code, out, _ = concepts_verb(capsys, tmp_path / "a" / "concepts.csv", "--out", tmp_path / "b")
    assert "3 concepts, 3 with emotions, 0 problems" in out


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Raised Brows\n", "line 1: 'Raised Brows' is not of the form"),
        (
            "Brows: suprise\n",
            "line 1: no emotion 'suprise' was asked for; did you mean 'surprise'?",
        ),
        ("Brows: fear\nBrows: sad\n", "line 2: 'Brows' comes twice"),
        ("\n", "no concept in it"),
    ],
)
def test_answer_refusals(capsys, tmp_path, text, message):
    (tmp_path / "answer.txt").write_text(text)
    code, _, err = concepts_verb(
        capsys, "--answer", tmp_path / "answer.txt", "--out", tmp_path / "out"
    )
    assert code == 2
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()
