"""The public names, for type checkers and editors; `__init__.py` reads them from here."""

from emojax.data.concepts import (
    ConceptSet as ConceptSet,
)
from emojax.data.concepts import (
    load_concepts as load_concepts,
)
from emojax.data.image_set import (
    ImageSet as ImageSet,
)
from emojax.data.opening import (
    open_split as open_split,
)
from emojax.data.weights import (
    ClipEncoder as ClipEncoder,
)
from emojax.data.weights import (
    load_clip as load_clip,
)
from emojax.data.weights import (
    load_deep_emotion as load_deep_emotion,
)
from emojax.data.weights import (
    load_vgg as load_vgg,
)
from emojax.data.weights import (
    save_deep_emotion as save_deep_emotion,
)
from emojax.data.weights import (
    save_vgg as save_vgg,
)
from emojax.dissection.dissect import dissect as dissect
from emojax.dissection.labels import Dissection as Dissection
from emojax.dissection.table import interpretability as interpretability
from emojax.editing.activations import (
    PreBiasActivations as PreBiasActivations,
)
from emojax.editing.activations import (
    pool_activations as pool_activations,
)
from emojax.editing.activations import (
    pre_bias_activations as pre_bias_activations,
)
from emojax.editing.baselines import (
    learn_gains as learn_gains,
)
from emojax.editing.edit import (
    edit as edit,
)
from emojax.editing.edit import (
    edit_layers as edit_layers,
)
from emojax.editing.edit import (
    read_gains as read_gains,
)
from emojax.editing.search import (
    Search as Search,
)
from emojax.editing.search import (
    Setting as Setting,
)
from emojax.editing.study import (
    Study as Study,
)
from emojax.editing.study import (
    run_study as run_study,
)
from emojax.editing.sweep import (
    Sweep as Sweep,
)
from emojax.errors import (
    InputError as InputError,
)
from emojax.evidence.assess import (
    Subject as Subject,
)
from emojax.evidence.assess import (
    assess as assess,
)
from emojax.evidence.assess import (
    subject as subject,
)
from emojax.evidence.verdict import (
    Evidence as Evidence,
)
from emojax.models.deep_emotion import (
    DeepEmotion as DeepEmotion,
)
from emojax.models.deep_emotion import (
    DeepEmotionConfig as DeepEmotionConfig,
)
from emojax.models.vgg import (
    VggConfig as VggConfig,
)
from emojax.models.vgg import (
    VggNet as VggNet,
)
from emojax.probing.probe import (
    probe as probe,
)
from emojax.probing.record import (
    ProbeRecord as ProbeRecord,
)
from emojax.report.figures import (
    plot_descriptions as plot_descriptions,
)
from emojax.report.figures import (
    plot_flagged as plot_flagged,
)
from emojax.report.figures import (
    plot_grid as plot_grid,
)
from emojax.report.figures import (
    plot_labels as plot_labels,
)
from emojax.report.figures import (
    plot_network as plot_network,
)
from emojax.report.figures import (
    plot_per_class as plot_per_class,
)
from emojax.report.figures import (
    plot_samples as plot_samples,
)
from emojax.report.figures import (
    plot_similarities as plot_similarities,
)
from emojax.report.figures import (
    plot_thresholds as plot_thresholds,
)
from emojax.report.figures import (
    plot_training as plot_training,
)
from emojax.report.results import (
    Results as Results,
)
from emojax.report.results import (
    read_run as read_run,
)
from emojax.report.write import (
    write_report as write_report,
)
from emojax.training.evaluate import (
    Evaluation as Evaluation,
)
from emojax.training.evaluate import (
    evaluate as evaluate,
)
