"""Operators that keep everything around them whole, each family with its reason."""

from spa.rules import MICROSOFT, Axes, Op, rule

_REASONS = [
    (
        "handles sequences and optionals, whose elements have shapes of their own",
        "",
        "Optional OptionalGetElement OptionalHasElement SequenceErase SequenceLength SequenceMap"
        " SplitToSequence",
    ),
    (
        "handles text or coded images",
        "",
        "ImageDecoder RegexFullMatch StringConcat StringNormalizer StringSplit TfIdfVectorizer",
    ),
    (
        "handles text, or the numbers of tokens",
        MICROSOFT,
        "BifurcationDetector MurmurHash3 NGramHashMapping NGramRepeatBlock Tokenizer"
        " VarlenNGramHashMapping WordConvEmbedding",
    ),
    (
        "transforms along whole axes",
        "",
        "BlackmanWindow HammingWindow HannWindow MelWeightMatrix STFT",
    ),
    (
        "what it makes depends on positions",
        "",
        "NonZero NonMaxSuppression Unique Compress Multinomial EyeLike Range RandomNormal"
        " RandomUniform RandomNormalLike RandomUniformLike Bernoulli Det BitCast Crop"
        " DynamicSlice",
    ),
    ("what it makes depends on positions", MICROSOFT, "DynamicTimeWarping Range Unique"),
    ("stores a number for every channel as an attribute", "", "ImageScaler"),
    ("inverts whole matrices", MICROSOFT, "Inverse"),
    ("reads a matrix that is stored by its positions", MICROSOFT, "SparseToDenseMatMul"),
    ("reads a table whose rows are packed", MICROSOFT, "GatherPacked"),
    ("attends by a table of blocks", MICROSOFT, "SparseAttention"),
    ("carries a state from step to step", MICROSOFT,
     "AttnLSTM GatedDeltaNet VarlenCausalConvWithState"),
    ("joins streams, whose number is not told apart from their width", MICROSOFT,
     "BranchwiseRMSNorm EngramGate HyperConnectionPostMix HyperConnectionPreMix"),
    ("picks experts by groups of them", MICROSOFT, "MoEGroupRouter"),
    ("has no published meaning", MICROSOFT, "MaxpoolWithMask SampleOp"),
    ("runs a body, which is not analysed", MICROSOFT,
     "BeamSearch GreedySearch Sampling WhisperBeamSearch"),
    ("holds channels in blocks that could not be taken apart", "com.microsoft.nchwc",
     "AveragePool Conv GlobalAveragePool GlobalMaxPool MaxPool ReorderInput ReorderOutput"
     " Upsample"),
    ("stores its weights in the order of one kernel", MICROSOFT,
     "DequantizeBFP DequantizeWithOrder MatMulFpQ4 MatMulNBitsMlp MatMulNBitsQLoRA"
     " MatMulNBitsQkv QOrderedAttention QOrderedGelu QOrderedLayerNormalization"
     " QOrderedLongformerAttention QOrderedMatMul QuantizeBFP QuantizeWithOrder"),
    ("has no kernel that this could be checked with", MICROSOFT,
     "GemmFloat8 MatMulBlockQuantizedFp4Weight MatMulBlockQuantizedFp8Weight"),
    ("sums what is stored, zero points included", MICROSOFT, "ReduceSumInteger"),
    ("is a loss", "", "NegativeLogLikelihoodLoss SoftmaxCrossEntropyLoss"),
    ("is a training step", "ai.onnx.preview.training", "Adagrad Adam Gradient Momentum"),
    (
        "is a classical model that stores its features as attributes",
        "ai.onnx.ml",
        "ArrayFeatureExtractor Binarizer CastMap CategoryMapper DictVectorizer FeatureVectorizer"
        " Imputer LabelEncoder LinearClassifier LinearRegressor Normalizer OneHotEncoder"
        " SVMClassifier SVMRegressor Scaler TreeEnsemble TreeEnsembleClassifier"
        " TreeEnsembleRegressor ZipMap",
    ),
]  # fmt: skip


def _register(why: str, domain: str, ops: str) -> None:
    @rule(ops, domain=domain, partial=True, text=f"locks: {why}")
    def lock(op: Op) -> list[Axes]:
        for k in range(len(op.axes)):
            op.lock_input(k, why)
        return op.whole_outputs()


for _why, _domain, _ops in _REASONS:
    _register(_why, _domain, _ops)
