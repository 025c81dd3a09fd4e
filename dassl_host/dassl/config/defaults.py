"""Default values of the 135 keys of Dassl 0.6.3.

The set is closed: other packages add keys of their own to a copy, never here.
"""

from yacs.config import CfgNode as CN

cfg_default = CN()
cfg_default.VERSION = 1
cfg_default.OUTPUT_DIR = "./output"
cfg_default.RESUME = ""  # folder of an earlier run; "" = OUTPUT_DIR
cfg_default.SEED = -1  # negative = unseeded
cfg_default.USE_CUDA = True
cfg_default.VERBOSE = True

cfg_default.INPUT = CN(
    dict(
        SIZE=(224, 224),  # height, width in px
        INTERPOLATION="bilinear",  # bilinear | bicubic | nearest
        TRANSFORMS=(),  # names of dassl.data.transforms
        NO_TRANSFORM=False,
        PIXEL_MEAN=[0.485, 0.456, 0.406],  # RGB, images in [0, 1]
        PIXEL_STD=[0.229, 0.224, 0.225],
        CROP_PADDING=4,  # random_crop, px
        RRCROP_SCALE=(0.08, 1.0),  # random_resized_crop, share of the area
        CUTOUT_N=1,
        CUTOUT_LEN=16,  # px
        GN_MEAN=0.0,
        GN_STD=0.15,
        RANDAUGMENT_N=2,
        RANDAUGMENT_M=10,
        COLORJITTER_B=0.4,
        COLORJITTER_C=0.4,
        COLORJITTER_S=0.4,
        COLORJITTER_H=0.1,
        RGS_P=0.2,  # probability of a grey image
        GB_P=0.5,  # probability of blurring
        GB_K=21,  # odd kernel size, px
    )
)

cfg_default.DATASET = CN(
    dict(
        ROOT="",
        NAME="",
        SOURCE_DOMAINS=(),
        TARGET_DOMAINS=(),
        NUM_LABELED=-1,  # labelled items in total, semi-supervised sets; -1 = all
        NUM_SHOTS=-1,  # labelled items per class; < 1 = all
        VAL_PERCENT=0.1,
        STL10_FOLD=-1,
        CIFAR_C_TYPE="",
        CIFAR_C_LEVEL=1,
        ALL_AS_UNLABELED=False,
    )
)

_TRAIN_LOADER = dict(
    SAMPLER="RandomSampler",
    BATCH_SIZE=32,
    N_DOMAIN=0,  # domains per batch, RandomDomainSampler; < 1 = all
    N_INS=16,  # items per class and batch, RandomClassSampler
)
cfg_default.DATALOADER = CN(
    dict(
        NUM_WORKERS=4,
        K_TRANSFORMS=1,  # random views per training image
        RETURN_IMG0=False,  # also yield the image as tested
        TRAIN_X=dict(_TRAIN_LOADER),
        TRAIN_U=dict(_TRAIN_LOADER, SAME_AS_X=True),  # SAME_AS_X: TRAIN_X's sampler and batch
        TEST=dict(SAMPLER="SequentialSampler", BATCH_SIZE=32),
    )
)

cfg_default.OPTIM = CN(
    dict(
        NAME="adam",  # adam | amsgrad | sgd | rmsprop | radam | adamw
        LR=0.0003,
        WEIGHT_DECAY=5e-4,
        MOMENTUM=0.9,
        SGD_DAMPNING=0,
        SGD_NESTEROV=False,
        RMSPROP_ALPHA=0.99,
        ADAM_BETA1=0.9,
        ADAM_BETA2=0.999,
        STAGED_LR=False,  # NEW_LAYERS learn with LR, the rest with LR * BASE_LR_MULT
        NEW_LAYERS=(),
        BASE_LR_MULT=0.1,
        LR_SCHEDULER="single_step",  # single_step | multi_step | cosine
        STEPSIZE=(-1,),  # epochs; single_step uses the last, <= 0 = MAX_EPOCH
        GAMMA=0.1,
        MAX_EPOCH=10,
        WARMUP_EPOCH=-1,  # < 1 = no warm-up
        WARMUP_TYPE="linear",  # linear | constant
        WARMUP_CONS_LR=1e-5,
        WARMUP_MIN_LR=1e-5,
        WARMUP_RECOUNT=True,  # False: the schedule after the warm-up starts at WARMUP_EPOCH
    )
)

cfg_default.MODEL = CN(
    dict(
        INIT_WEIGHTS="",
        BACKBONE=dict(NAME="", PRETRAINED=True),
        HEAD=dict(NAME="", HIDDEN_LAYERS=(), ACTIVATION="relu", BN=True, DROPOUT=0.0),
    )
)
cfg_default.TRAIN = CN(
    dict(
        CHECKPOINT_FREQ=0,  # epochs; < 1 = the last one only
        PRINT_FREQ=10,  # batches
        COUNT_ITER="train_x",  # length of an epoch: train_x | train_u | smaller_one
    )
)
cfg_default.TEST = CN(
    dict(
        EVALUATOR="Classification",
        PER_CLASS_RESULT=False,
        COMPUTE_CMAT=False,  # confusion matrix to OUTPUT_DIR/cmat.pt
        NO_TEST=False,
        SPLIT="test",  # test | val
        FINAL_MODEL="last_step",  # last_step | best_val
    )
)

# The engine has none of these methods; the nodes stay so that YAML files written for upstream merge.
_DOMAIN_ADAPTATION = dict(
    MCD=dict(N_STEP_F=4),
    MME=dict(LMDA=0.1),
    CDAC=dict(CLASS_LR_MULTI=10, RAMPUP_COEF=30, RAMPUP_ITRS=1000, TOPK_MATCH=5, P_THRESH=0.95, STRONG_TRANSFORMS=()),
    SE=dict(EMA_ALPHA=0.999, CONF_THRE=0.95, RAMPUP=300),
    M3SDA=dict(LMDA=0.5, N_STEP_F=4),
    DAEL=dict(WEIGHT_U=0.5, CONF_THRE=0.95, STRONG_TRANSFORMS=()),
)
_DOMAIN_GENERALISATION = dict(
    CROSSGRAD=dict(EPS_F=1.0, EPS_D=1.0, ALPHA_F=0.5, ALPHA_D=0.5),
    DDAIG=dict(G_ARCH="", LMDA=0.3, CLAMP=False, CLAMP_MIN=-1.0, CLAMP_MAX=1.0, WARMUP=0, ALPHA=0.5),
    DAELDG=dict(WEIGHT_U=0.5, CONF_THRE=0.95, STRONG_TRANSFORMS=()),
    DOMAINMIX=dict(TYPE="crossdomain", ALPHA=1.0, BETA=1.0),
)
_SEMI_SUPERVISED = dict(
    ENTMIN=dict(LMDA=1e-3),
    MEANTEACHER=dict(WEIGHT_U=1.0, EMA_ALPHA=0.999, RAMPUP=5),
    MIXMATCH=dict(WEIGHT_U=100.0, TEMP=2.0, MIXUP_BETA=0.75, RAMPUP=20000),
    FIXMATCH=dict(WEIGHT_U=1.0, CONF_THRE=0.95, STRONG_TRANSFORMS=()),
)
cfg_default.TRAINER = CN(dict(NAME="", **_DOMAIN_ADAPTATION, **_DOMAIN_GENERALISATION, **_SEMI_SUPERVISED))
