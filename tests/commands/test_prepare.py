"""`emojax prepare`: the raw FER2013 that it refuses."""

import pytest
from commands_in_process import run
from damage import (
    BAD_IMAGES,
    CUT_IMAGES,
    encoded,
)
from refusals import table

GOOD_ROW = " ".join(["7"] * 2304)
HEADER = "emotion,pixels,Usage\n"


def test_prepare_refuses_a_bad_image(capsys, tmp_path, fer_folder):
    (fer_folder / "train" / "happy" / "Training_bad.jpg").write_bytes(b"not an image")
    code, _, err = run(capsys, "prepare", "--source", fer_folder, "--out", tmp_path / "fer")
    assert (code, err.count("\n")) == (2, 1)
    assert "Training_bad.jpg: not a readable image" in err
    assert not (tmp_path / "fer").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    table(
        (
            "a label above six",
            HEADER + f"7,{GOOD_ROW},Training\n",
            "row 1: emotion '7' is not a number from 0 to 6",
        ),
        ("two pixels", HEADER + "1,7 8,Training\n", "row 1: 2 pixel values, not 2304"),
        (
            "a pixel above 255",
            HEADER + f"1,{GOOD_ROW.replace('7', '300')},Training\n",
            "row 1: pixel value '300' is not a whole number from 0 to 255",
        ),
        ("two columns", HEADER + "1,7\n", "row 1: 2 columns, not 3"),
        ("an empty row", HEADER + "\n", "row 1: 0 columns"),
        ("four columns", HEADER + f"1,{GOOD_ROW},Training,x\n", "row 1: 4 columns"),
        ("columns in another order", "pixels,emotion,Usage\n", "columns are"),
        ("semicolons", HEADER.replace(",", ";") + f"1;{GOOD_ROW};Training\n", "columns are"),
        ("no header", f"1,{GOOD_ROW},Training\n", "columns are"),
        ("a fraction", HEADER + f"1,7.5 {GOOD_ROW[2:]},Training\n", "pixel value '7.5'"),
        ("an underscore", HEADER + f"1,1_0 {GOOD_ROW[2:]},Training\n", "pixel value '1_0'"),
        ("a plus sign", HEADER + f"1,+7 {GOOD_ROW[2:]},Training\n", "pixel value '+7'"),
        ("other digits", HEADER + f"1,\u0667 {GOOD_ROW[2:]},Training\n", "pixel value"),
        ("a raised digit", HEADER + f"1,\u00b2 {GOOD_ROW[2:]},Training\n", "pixel value"),
        (
            "a number of 5,000 digits",
            HEADER + f"1,{'9' * 5000} {GOOD_ROW[2:]},Training\n",
            "pixel value '999",
        ),
        (
            "commas between pixels",
            HEADER + f'1,"{GOOD_ROW.replace(" ", ",")}",Training\n',
            "pixel value",
        ),
        ("no pixels", HEADER + "1,,Training\n", "row 1: 0 pixel values"),
        ("one pixel short", HEADER + f"1,{GOOD_ROW[2:]},Training\n", "row 1: 2303 pixel values"),
        ("an empty label", HEADER + f",{GOOD_ROW},Training\n", "row 1: emotion ''"),
        ("a word for a label", HEADER + f"happy,{GOOD_ROW},Training\n", "row 1: emotion 'happy'"),
        ("a label of two digits", HEADER + f"12,{GOOD_ROW},Training\n", "row 1: emotion '12'"),
        ("a label below zero", HEADER + f"-1,{GOOD_ROW},Training\n", "row 1: emotion '-1'"),
        ("small letters in Usage", HEADER + f"1,{GOOD_ROW},training\n", "row 1: Usage 'training'"),
        ("an open quote", HEADER + f'1,"{GOOD_ROW}', "row 1"),
        ("a cell of 2 MB", HEADER + f"1,{'7 ' * 1_000_000},Training\n", "not a readable csv"),
        ("zero bytes", (HEADER + f"1,{GOOD_ROW}\0,Training\n").encode(), "row 1"),
        ("not UTF-8", HEADER.encode() + b"1,\xff\xfe,Training\n", "is not UTF-8"),
        ("UTF-16", (HEADER + f"1,{GOOD_ROW},Training\n").encode("utf-16"), "is not UTF-8"),
        ("a gzip file", b"\x1f\x8b\x08\0\0\0\0\0\0\0", "is not UTF-8"),
        ("an image", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "is not UTF-8"),
        ("control characters in a cell", HEADER + f"\x1b[31m,{GOOD_ROW},Training\n", "emotion"),
        (
            "a bad row after good ones",
            HEADER + f"1,{GOOD_ROW},Training\n" * 20 + "8,7,Training\n",
            "row 21: emotion '8'",
        ),
    ),
)
def test_csv_files_are_refused(inputs, content, message):
    inputs.refused(["prepare", "--source", inputs.put("fer2013.csv", content)], message)


@pytest.mark.parametrize("content", table(*(BAD_IMAGES | CUT_IMAGES).items()))
def test_images_are_refused(inputs, content):
    inputs.refused(["prepare", "--source", inputs.raw(content)], "Training_1.jpg: ")


@pytest.mark.parametrize(
    ("name", "put", "message"),
    table(
        ("a folder", "Training_0.jpg", lambda path: path.mkdir(), "cannot read"),
        (
            "a link to nothing",
            "Training_2.jpg",
            lambda path: path.symlink_to("nowhere"),
            "cannot read",
        ),
        (
            "a link to itself",
            "Training_2.jpg",
            lambda path: path.symlink_to(path.name),
            "cannot read",
        ),
        (
            "a name that is not UTF-8",
            "Training_\udcff.jpg",
            lambda path: path.write_bytes(encoded("PNG")),
            "the name is not UTF-8",
        ),
    ),
)
def test_what_is_no_image_file_is_refused(inputs, name, put, message):
    root = inputs.raw(encoded("PNG"))
    put(root / "train" / "happy" / name)
    inputs.refused(["prepare", "--source", root], message)
