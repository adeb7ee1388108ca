"""Every key of a run; the other configs only override.

Networks, resolutions, optimiser and schedule are the paper's. The router is not: it learns outcomes
and keeps to a budget; configs/imagenet_resnet50.py has the paper's.
"""

from ml_collections import ConfigDict

from drnet_jax.config_files import override


def get_config(argument: str = "") -> ConfigDict:
    config = ConfigDict({
        "seed": 0,  # seeds weights, shuffling, augmentation and Gumbel noise
        "batch_size": 256,  # global training batch, split evenly over all devices
        "bucket_multiple": 8,  # per-device bucket sizes are multiples of this, or the whole batch
        "bucket_lead": 300,  # steps a new bucket size compiles in the background before it is used
        "log_every": 20,  # steps between lines in metrics.jsonl and TensorBoard
        "resolutions": (224, 168, 112),  # candidates, largest (the base size) first
        "budget": 2.8,  # mean cost in 1e9 multiply-adds, predictor included; 0: none ("gumbel")
        # Parameters, sums of gradients, statistics and logits are float32 in any case.
        "dtype": "float32",  # compute type: "bfloat16" for GPUs and TPUs, "float32" for CPUs
        "sync_norm": False,  # BatchNorms of training see a bucket of all devices, not of their own
        "init_from": "",  # workdir of a run, or of an import, whose weights to begin with; "": none
        "data": {
            "name": "imagenet2012",  # tfds data set, "folder", or "records" (converted Parquet)
            "dir": "",  # where it lies (folder: train/<class>/*, val/<class>/*); "": tfds's default
            "train_split": "train",  # tfds split, or folder, to train on
            "val_split": "validation",  # tfds split, or folder, to evaluate on
            "classes": "",  # a file of the classes to keep, one a line; "imagenet100"; "": all
            "images_per_class": 0,  # training images to keep of each class; 0: all
            "crop_area": (0.08, 1.0),  # random-resized crop: range of the share of the image's area
            "crop_ratio": (0.75, 4 / 3),  # random-resized crop: range of width / height
            "max_bad": 0.0,  # images that may be unreadable: a number, or below 1 a share; 0: none
            "timeout": 300.0,  # seconds to wait for a batch of images; 0: for ever
            "workers": 0,  # decoding processes per host; 0 decodes in threads only
            "threads": 16,  # decoding threads per process
        },
        "preprocessing": {  # of pixels from 0 to 255: what the weights expect
            "mean": (123.675, 116.28, 103.53),  # subtracted, of red, green and blue
            "deviation": (58.395, 57.12, 57.375),  # divided by
            "interpolation": "bilinear",  # of resizing, antialiased: "bilinear" or "bicubic"
            "val_crop": 0.875,  # share of a side that the central crop keeps in validation
        },
        "classifier": {
            "name": "resnet50",  # a name in drnet_jax.models, or "package.module:factory"
            "width": 1.0,  # multiplies the published number of channels
            "classes": 0,  # number of classes; 0 takes what the data set says
            "resolution_aware_norm": True,  # BatchNorms per resolution; False shares one set
            "zero_init": False,  # begin with residual branches at 0 (scale of their last norm)
            "fixed_statistics": False,  # norms train by running statistics, and keep these
        },
        "predictor": {
            "name": "resnet10",  # a name in drnet_jax.models, or "package.module:factory"
            "width": 1.0,  # multiplies the published number of channels
            "resolution": 128,  # size at which the predictor sees the image
            "classifies": True,  # it learns the classes, too, and may answer by itself ("outcome")
        },
        "router": {
            "objective": "outcome",  # what the predictor learns: "outcome", or the paper's "gumbel"
            "gumbel": {
                "alpha": 2.5,  # target in 1e9 multiply-adds without predictor (Eq. 7)
                "eta": 0.2,  # weight of the cost regulariser (Eq. 8)
                "temperature": 1.0,  # tau of the soft choice's gradient (Eq. 11)
                "estimator": "selected",  # choice gradient: "selected" (bucketed) or "dense"
            },
            "outcome": {
                "exploration": 0.2,  # Gumbel noise on the scores in training, times this
            },
        },
        "optimizer": {
            "name": "sgd",  # as PyTorch's; "rmsprop": as TensorFlow's, with which MobileNets came
            "momentum": 0.9,  # of either
            "weight_decay": 1e-4,  # L2 penalty added to the gradient, as PyTorch's SGD does
            "clip_norm": 0.0,  # clip classifier's and predictor's gradient to this norm; 0: no
            "decay_norms_and_biases": True,  # decay BatchNorm scale and bias, and biases, too
            "predictor_rate": 1.0,  # the predictor's learning rate as a share of the classifier's
            "ema": 0.0,  # decay of the moving average of weights that validates and is kept; 0: no
        },
        "pretrain": {
            "epochs": 70.0,  # stage 1: all resolutions, and a classifying predictor; 0 skips it
            "learning_rate": 0.1,  # after warm-up
            "warmup_epochs": 3.0,  # linear from 0
            "schedule": "steps",  # after the warm-up: "steps" down, or a "cosine" to 0
            "decay_epochs": 20.0,  # multiply the rate by decay_factor every so many epochs
            "decay_factor": 0.1,  # see decay_epochs
            "label_smoothing": 0.0,  # share of a label's weight spread over all classes
            "distillation": 0.0,  # how far the teacher's answers are learnt, not labels: 0 to 1
            "teacher": "base",  # the base, of the others; "ensemble": the mean of all, of all
            "mixup": 0.0,  # alpha of the Beta by which images and labels are mixed; 0: no
            "cutmix": 0.0,  # alpha of the Beta by which boxes are pasted; both: either in turn
        },
        "finetune": {
            "epochs": 100.0,  # stage 2: predictor and classifier together; 0 skips it
            "learning_rate": 0.1,  # after warm-up
            "warmup_epochs": 3.0,  # linear from 0
            "schedule": "steps",  # after the warm-up: "steps" down, or a "cosine" to 0
            "decay_epochs": 30.0,  # multiply the rate by decay_factor every so many epochs
            "decay_factor": 0.1,  # see decay_epochs
            "label_smoothing": 0.0,  # share of a label's weight spread over all classes
        },
        "evaluation": {
            "batch_size": 256,  # per host; also the size of the routed queues
            "every_epochs": 1.0,  # epochs between evaluations while training (the best is kept)
            "speed_images": 2048,  # images, held in memory, by which images/s are measured
            "rule": "margin",  # how sure cascades take an answer to be: "margin" or "probability"
        },
        "checkpoint": {
            "every_steps": 1000,  # steps between checkpoints, besides the end of each stage
            "every_minutes": 30.0,  # minutes after which there is one at the next log line; 0: none
            "keep": 3,  # how many of the latest to keep; the best is kept besides
        },
    })
    return override(config, argument)
