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
    "ImageSet": "emojax.data.loader",
    "open_split": "emojax.data.loader",
    "ClipEncoder": "emojax.data.weights",
    "load_clip": "emojax.data.weights",
    "load_vgg": "emojax.data.weights",
    "save_vgg": "emojax.data.weights",
    "load_deep_emotion": "emojax.data.weights",
    "save_deep_emotion": "emojax.data.weights",
    "VggConfig": "emojax.models.vgg",
    "VggNet": "emojax.models.vgg",
    "CompactConfig": "emojax.models.compact",
    "CompactNet": "emojax.models.compact",
    "DeepEmotion": "emojax.models.deep_emotion",
    "DeepEmotionConfig": "emojax.models.deep_emotion",
    "ProbeRecord": "emojax.engine.record",
    "probe": "emojax.engine.probe",
    "Dissection": "emojax.engine.dissect",
    "dissect": "emojax.engine.dissect",
    "interpretability": "emojax.engine.dissect",
    "edit": "emojax.engine.edit",
    "sweep": "emojax.engine.edit",
    "threshold_grid": "emojax.engine.edit",
    "edit_layers": "emojax.engine.edit",
    "read_gains": "emojax.engine.edit",
    "Search": "emojax.engine.edit",
    "LayerInputs": "emojax.engine.inputs",
    "layer_inputs": "emojax.engine.inputs",
    "every_threshold": "emojax.engine.sweep",
    "try_masks": "emojax.engine.sweep",
    "try_gains": "emojax.engine.sweep",
    "learn_gains": "emojax.engine.learn",
    "Subject": "emojax.engine.evidence",
    "subject": "emojax.engine.evidence",
    "assess": "emojax.engine.evidence",
    "Evidence": "emojax.engine.verdict",
    "Evaluation": "emojax.engine.evaluate",
    "evaluate": "emojax.engine.evaluate",
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
