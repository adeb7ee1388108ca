"""Variants of the configs for ImageNet, named after the colon of `--config`, in any order.

`--config configs/imagenet_resnet50.py:imagenet100,single,resolutions=(192,)`: they are applied in
the order of VARIANTS, and then the keys are set.
"""

from ml_collections import ConfigDict

# In 1e9 multiply-adds, the predictor's included: what the paper's ResNet-50 has in its row of
# alpha = 2.5, and the same share of the others' cost at 224 px.
BUDGETS = {"resnet50": 2.8, "resnet101": 5.3, "mobilenetv2": 0.21}


def modern(config: ConfigDict) -> None:
    """What has been found since, in place of the paper's training; not run at this size.

    One stage, with a cosine and a warm-up, in which the predictor learns classes and outcomes; all
    resolutions taught by their mean; smoothed labels; no decay of norms and biases; residual
    branches that begin at 0; the average of the weights; bfloat16. Each is a key of its own, so
    that `:modern,optimizer.ema=0` is all but one. What they are worth: docs/training.md.
    """
    config.dtype = "bfloat16"
    config.batch_size = 256
    config.classifier.zero_init = True
    config.predictor.classifies = True
    config.router.objective = "outcome"
    config.budget = BUDGETS.get(config.classifier.name, config.budget)
    config.optimizer.name = "sgd"
    config.optimizer.decay_norms_and_biases = False
    config.optimizer.predictor_rate = 1.0
    config.optimizer.ema = 0.9999  # of 10,000 steps, two epochs of ImageNet
    for stage in (config.pretrain, config.finetune):
        stage.learning_rate = 0.1
        stage.warmup_epochs = 5
        stage.schedule = "cosine"
        stage.label_smoothing = 0.1
    # About as much work as the paper's 70 epochs at all resolutions and 100 at one of them.
    config.pretrain.epochs = 100
    config.pretrain.distillation = 0.5
    config.pretrain.teacher = "ensemble"
    config.finetune.epochs = 0


def imagenet100(config: ConfigDict) -> None:
    """100 classes of ImageNet-1K with 500 training images each, as in tables 1 and 2."""
    config.data.classes = "imagenet100"
    config.data.images_per_class = 500
    config.classifier.classes = 100
    if config.optimizer.ema:
        config.optimizer.ema = 0.999  # an epoch has 195 steps


def shared_norm(config: ConfigDict) -> None:
    """One set of BatchNorms for all resolutions, the ablation of table 1."""
    config.classifier.resolution_aware_norm = False


def single(config: ConfigDict) -> None:
    """The network at its largest resolution alone: the paper's baselines, of tables 1, 3, 4 and 6.

    Nothing is routed, and the predictor is never trained: its row is that of "fixed 224". The paper
    tells no schedule of its baselines; this is the one of stage 1.
    """
    config.resolutions = config.resolutions[:1]
    config.predictor.classifies = False
    config.router.objective = "gumbel"
    config.router.gumbel.eta = 0.0
    config.budget = 0.0
    config.pretrain.distillation = 0.0
    config.finetune.epochs = 0


VARIANTS = (modern, imagenet100, shared_norm, single)
