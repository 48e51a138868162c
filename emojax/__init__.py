"""emojax: which concept each hidden unit of an emotion-recognition network stands for, and what editing by it does.

record = emojax.probe(model, images, clip)
found = emojax.dissect(record, emojax.load_concepts("paper25"))
edited = emojax.edit(model, "lin2", gains)
"""

import importlib

_HOMES = {
    "InputError": "emojax.errors",
    "ConceptSet": "emojax.data.concepts",
    "load_concepts": "emojax.data.concepts",
    "ImageSet": "emojax.data.image_set",
    "open_split": "emojax.data.opening",
    "ClipEncoder": "emojax.data.clip_encoder",
    "load_clip": "emojax.data.clip_folder",
    "load_vgg": "emojax.data.weights",
    "save_vgg": "emojax.data.weights",
    "load_deep_emotion": "emojax.data.weights",
    "save_deep_emotion": "emojax.data.weights",
    "VggConfig": "emojax.models.vgg",
    "VggNet": "emojax.models.vgg",
    "DeepEmotion": "emojax.models.deep_emotion",
    "DeepEmotionConfig": "emojax.models.deep_emotion",
    "ProbeRecord": "emojax.probing.record",
    "probe": "emojax.probing.probe",
    "Dissection": "emojax.dissection.dissect",
    "dissect": "emojax.dissection.dissect",
    "interpretability": "emojax.dissection.dissect",
    "edit": "emojax.editing.edit",
    "sweep": "emojax.editing.edit",
    "threshold_grid": "emojax.editing.edit",
    "edit_layers": "emojax.editing.edit",
    "read_gains": "emojax.editing.edit",
    "Search": "emojax.editing.edit",
    "LayerInputs": "emojax.editing.activations",
    "layer_inputs": "emojax.editing.activations",
    "every_threshold": "emojax.editing.sweep",
    "try_masks": "emojax.editing.sweep",
    "try_gains": "emojax.editing.sweep",
    "learn_gains": "emojax.editing.baselines",
    "Subject": "emojax.evidence.assess",
    "subject": "emojax.evidence.assess",
    "assess": "emojax.evidence.assess",
    "Evidence": "emojax.evidence.verdict",
    "Evaluation": "emojax.training.evaluate",
    "evaluate": "emojax.training.evaluate",
    "plot_similarities": "emojax.report.figures",
    "plot_labels": "emojax.report.figures",
    "plot_descriptions": "emojax.report.figures",
    "plot_samples": "emojax.report.figures",
    "plot_flagged": "emojax.report.figures",
    "plot_network": "emojax.report.figures",
    "plot_grid": "emojax.report.figures",
    "plot_thresholds": "emojax.report.figures",
    "plot_training": "emojax.report.figures",
    "plot_per_class": "emojax.report.figures",
    "write_report": "emojax.report.write",
    "Results": "emojax.report.results",
    "read_run": "emojax.report.results",
}
__all__ = sorted(_HOMES)  # noqa: PLE0605


def __getattr__(name: str):
    """Loads a public name when it is first used, so that `import emojax` costs nothing."""
    if name not in _HOMES:
        raise AttributeError(f"module 'emojax' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
