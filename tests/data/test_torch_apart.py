"""A command loads torch for a PyTorch file alone."""

import subprocess
import sys
import textwrap

import pytest

CODE = """
    import sys
    from pathlib import Path
    from emojax.data.torch_apart import import_transformers
    import_transformers()
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPTokenizer
    from transformers import AutoTokenizer, Siglip2Config, Siglip2ImageProcessorPil
    from transformers import SiglipConfig, SiglipImageProcessorPil
    print("torch" in sys.modules)
    from emojax.data.weights import read_arrays
    print(read_arrays(Path(sys.argv[1]))["lin1.bias"].tolist())
    print("torch" in sys.modules)
"""


@pytest.mark.long
def test_torch_is_loaded_for_its_own_files_alone(tmp_path):
    torch = pytest.importorskip("torch", reason="the oracle extra (torch) is not installed")
    torch.save({"lin1.bias": torch.tensor([1.0, 2.0])}, tmp_path / "weights.pt")
    command = [sys.executable, "-c", textwrap.dedent(CODE), tmp_path / "weights.pt"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (done.stdout.split("\n")[:3], done.stderr) == (["False", "[1.0, 2.0]", "True"], "")
