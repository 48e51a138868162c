import pytest

from emojax.dissection.explanation_files import Explanation, read
from emojax.errors import InputError

LAYERS = {"conv1a": 4, "lin2": 20}
PLAIN = "layer,unit,description\n"
LINEAR = "layer,unit,val correlation,weight0,concept0,weight1,concept1,bias,sim correlation\n"


def parse(tmp_path, text):
    path = tmp_path / "file.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read(path, LAYERS)


def test_four_forms(tmp_path):
    smile = Explanation("lin2", 3, ("Smile",), (1.0,), 0.0, linear=False)
    assert parse(tmp_path, f"{PLAIN}lin2,3,Smile\n").explanations == (smile,)
    clip_dissect = "layer,unit,description,similarity\nlin2,3,Smile,0.7\n"
    assert parse(tmp_path, clip_dissect).explanations == (smile,)
    ours = "layer,unit,concept,similarity,margin\nlin2,3,Smile,0.7,0.1\n"
    assert parse(tmp_path, ours).explanations == (smile,)
    published = parse(tmp_path, f'{LINEAR}lin2,3,.4,1.5,"a, b",-0.5,Smile,0.2,.3\n')
    assert published.explanations == (
        Explanation("lin2", 3, ("a, b", "Smile"), (1.5, -0.5), 0.2, linear=True),
    )
    assert published.concepts == ("a, b", "Smile")
    assert published.explanations[0].text() == "+1.5·a, b -0.5·Smile +0.2"
    of_ours = (
        "layer,unit,weight0,concept0,weight1,concept1,bias,correlation,label,label_correlation\n"
        "lin2,3,1.5,Smile,0,0,0.1,.4,Smile,.3\nlin2,4,0,0,0,0,0.1,0,Smile,0\n"
    )
    first, nothing = parse(tmp_path, of_ours).explanations
    assert first == Explanation("lin2", 3, ("Smile",), (1.5,), 0.1, linear=True)
    assert nothing.concepts == ()


REFUSED = [
    ("", "first line is ''"),
    (PLAIN, "no explanation in it"),
    ("unit,description\n3,Smile\n", "not layer,unit,description"),
    ("layer,unit,unit,description\n", "'unit' comes twice"),
    ("layer,unit,weight0,concept0\n", "no column bias"),
    ("layer,unit,weight0,bias\n", "no column concept0"),
    (f"{PLAIN}lin3,3,Smile\n", "line 2: no layer 'lin3'; did you mean 'lin2'?"),
    (f"{PLAIN}{'x' * 10_000},3,Smile\n", "no layer 'xxx"),
    (f"{PLAIN}lin2,20,Smile\n", "unit '20' is not one of 0…19 of lin2"),
    (f"{PLAIN}lin2,-1,Smile\n", "unit '-1'"),
    (f"{PLAIN}lin2,1e3,Smile\n", "unit '1e3'"),
    (f"{PLAIN}lin2,²,Smile\n", "unit '²'"),
    (f"{PLAIN}lin2,{'9' * 5000},Smile\n", "unit '999"),
    (f"{PLAIN}lin2,3,Smile\nlin2,3,Frown\n", "unit 3 of lin2 comes twice"),
    (f"{PLAIN}lin2,3, \n", "line 2: the concept is blank"),
    (f"{PLAIN}lin2,3,{'x' * 10_000}\n", "a concept of 10000 characters, at most 1000"),
    (f"{PLAIN}lin2,3,a\x1b[31m\n", "control character"),
    (f"{PLAIN}lin2,3,a\x00b\n", "file.csv"),
    (f"{PLAIN}lin2,3\n", "line 2: 2 cells, the header has 3"),
    (f"{PLAIN}lin2,3,Smile,more\n", "4 cells"),
    (f'{PLAIN}lin2,3,"Smile\n', "not a csv"),
    (f"{PLAIN}lin2,3,{'x' * 200_000}\n", "file.csv"),
    (f"{LINEAR}lin2,3,.4,nan,a,0,0,0.2,.3\n", "the weight 'nan' is not a finite number"),
    (f"{LINEAR}lin2,3,.4,1,a,0,0,1e40,.3\n", "the bias '1e40'"),
    (f"{LINEAR}lin2,3,.4,=1+1,a,0,0,0,.3\n", "the weight '=1+1'"),
    (f"{LINEAR}lin2,3,.4,1,a,1,a,0,.3\n", "twice in one explanation"),
    (b"\xff\xfe\x00", "is not UTF-8"),
]


@pytest.mark.parametrize(("text", "message"), REFUSED)
def test_refused_in_one_line(tmp_path, text, message):
    with pytest.raises(InputError) as refusal:
        parse(tmp_path, text)
    assert message in str(refusal.value)
    assert len(str(refusal.value)) < 600
    with pytest.raises(InputError, match="cannot read"):
        read(tmp_path / "none.csv", LAYERS)
