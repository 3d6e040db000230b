"""Mutants that no test can kill, each with the reason.

Keys are regular expressions that match ``family.name`` from its beginning.
"""

EQUIVALENT: dict[str, str] = {
    r".*`op\.lock_input\(": "a list of sizes or positions holds no weight, and a group without a "
    "weight is none",
    r"movement\..*: without `for k in range\(1, len\(op.axes\)\): op.lock_input": "likewise",
    r"movement\..*: 1 becomes 2 in `range\(1, len\(op.axes\)\)`": "likewise",
    r"repeat\.Constant: Constant dropped": "constants are not walked over",
    r"movement\._resize_split: .*`new == .*": "then the sizes are written out, which is right too",
    r"movement\._resize_split: without `if new == ": "likewise",
    r"movement\._resize_split: (without `return Resized\(\)|`shape is not None`)": "likewise",
    r"movement\._resize_slice: 0 becomes 1 in `_edges": "starts and ends are of one type",
    r"movement\._resize_slice: (`step < 0` compared|0 becomes 1 in `step)": "one step, forth or "
    "back",
    r"movement\._resize_slice: (2 becomes 3|1 becomes 2 in `-left)": "the same ends in other words",
    r"movement\._resize_gather_nd: `rows.* without `len": "the same positions come out",
    r"movement\.(split|slice_|gather): `is_whole.* without `is_whole": "a part of a whole axis is "
    "whole",
    r"movement\.(slice_: 1 becomes 2 in `op.shape|_resize_slice: 1 becomes 2 in `op.has)": "there "
    "are as many ends as starts",
    r"movement\.pad: 2 becomes 3 in `max": "more ids than are used",
    r"movement\._lane: (-1 becomes -2|1 becomes 2 in `:1)": "any number below zero means the rest; "
    "neighbours that are tied in a row are tied",
    r"movement\.QLinearConcat: 302 becomes": "the same numbers",
    r"movement\.scatter_elements: False for True": "the group of what is picked is inexact already",
    r"movement\._lane: .* without `(step < 0|size % step|not 0 <= start < step)`": "the other "
    "conditions, or the Reshape behind them, refuse the same",
    r"movement\._lane: (`step < 0` compared|0 becomes 1 in `step < 0`|`0 <= start < step`)": "the "
    "same",
    r"pool\.(MaxUnpool|AffineGrid): silent at zero": "all of its axes are whole",
    r"pool\.(MaxRoiPool|RoiAlign): .*r and \* swapped": "both are whole",
    r"pool\.resize: b'' becomes another": "any value but one means the same",
    r"reduce\._without: 1 becomes 2 in `op.attr\('keepdims', 1\)`": "any number but zero is yes",
    r"norm\.(batch_norm|_channels): 1 becomes 2 in `op\.attr": "likewise",
    r"norm\.GatedRMSNorm: b'silu' becomes": "any value but one means the same",
    r"norm\._statistics: 1 becomes 2 in `1:`": "BatchNormalization has one, three or five outputs",
    r"norm\._statistics: .* without `op\.attr\('training": "it has three outputs then",
    r"norm\._statistics: 'N \.\.\.': N and \.\.\. swapped": "a list of letters has no order",
    r"norm\.batch_norm: 4 becomes 5": "a term more than there are inputs",
    r"norm\.Q?EmbedLayerNormalization: 'B s, .*: (B |s becomes)": "a list of words or positions "
    "holds no weight, and a group without a weight is none",
    r"norm\.Q?EmbedLayerNormalization: silent at zero": "its group is inexact already",
    r"norm\.Q?EmbedLayerNormalization: 'B s, .*: \* becomes": "scales and points of one number "
    "have no axes, and a mask holds no weight",
    r"norm\.qlinear_softmax: '.*\* becomes": "scales and points of one number have no axes",
    r"conv\._quantised: ('\*'|', \*, \*, \(G O\) -> '): \* becomes": "likewise",
    r"attention\._projected: ', \*, (\*, )?': \* becomes": "likewise",
    r"norm\._group_norm: ' -> N \(G C\) \*': \* becomes": "axes that no input has are whole",
    r"conv\._quantised: '( -> )?N (\* \(G O\)|\(G O\) \*)': \* becomes": "likewise",
    r"attention\._attention: ('B s \(H G E\)'|'B \(H G\) s E'): s becomes": "likewise",
    r"attention\._attention: ', B H u D, B H u E': u becomes": "likewise",
    r"attention\._resize_projected: .* without `new\[1\] != 3": "the scale is then written out "
    "where it is what it stands for",
    r"norm\.LRN: without zero": "its group is inexact already",
    r"quantize\.(De)?[Qq]uantizeLinear: without sizes": "the shape of the scales says the same",
    r"quantize\._block: (`size` negated|0 becomes 1 in)": "likewise",
    r"quantize\._pattern: ', \*, \* -> ': \* becomes": "numbers have no axes",
    r"recurrent\._(lstm|gru|rnn): '(B s d|s d B) H': (s becomes S|d becomes D|s and d)": "a letter "
    "that no input has is whole, as is one in lower case",
    r"reduce\.trilu: .*(m and n swapped|\* becomes)": "both are whole; a number has no axes",
    r"conv\.(Conv|declare): without sizes": "the number of groups follows from the shapes",
    r"conv\._resize_(conv|transpose): (`group > 1` compared|1 becomes 2 in `node)": "one "
    "group is then written out, or worked out",
    r"conv\._(depth_to_space|space_to_depth): b'DCR' becomes": "any value but one means the same",
    r"conv\._macs_transpose: 0 becomes 1 in `op.shape": "x and its weight have the same rank",
    r"reshape\._blocks: (.*0 in old`|without `(yield \(slice\(0|return`|if 0 in))": "nothing is "
    "removed from an empty tensor",
    r"reshape\._factors: (without `(return None|if 0 in)|`0 in old or 0 in new`: and)": "the same",
    r"reshape\._split: (without `(if len\(d|if is_|return \[axis|return \[wh)|`len\(dims\))": "the "
    "rest gives the same, only slower",
    r"reshape\._merge: without `(if len\(parts\) == 1|return parts\[0\])": "the same",
    r"reshape\._(split: without `if len\(var|merge: without `if len\(live)": "a grid of one line "
    "is that line",
    r"reshape\.regrid: without `if old": "the same",
    r"reshape\._wanted: (0 becomes 1 in `size > 0|.* without `size == 0`)": "an axis of size one "
    "stays, and -1 is then written out, which is right too",
    r"reshape\._wanted: .* without `copies`": "nothing is removed from an empty tensor",
    r"reshape\._name_axes: .* without `sum": "the axes are then named, which is right too",
    r"reshape\._blocks: (.*i < len\(old\)`?( or j| compared)|.* without `(i|j) < len)": "both "
    "shapes have one product, so that every run ends",
    r"reshape\._blocks: `(left < right|right < left|j < len.*)` compared": "the same",
    r"reshape\._blocks: (without `raise|`right < left.*(: and|without)|0 becomes 1 in `sl)": "the "
    "same",
    r"reshape\._factors: `0 in old or 0 in new` without": "nothing is removed from an empty tensor",
    r"reshape\._split: (without `return \[Axis|`len\(varying\) <= 1` comp|`grid != )": "a grid of "
    "one line is that line",
    r"reshape\._split: (0 becomes 1 in `\[0\]`|`varying or)": "the same",
    r"reshape\._split: (0 becomes 1 in `\(:, 0|-1 becomes -2)": "all lines of it are the same",
    r"reshape\._merge: without `return Axis": "a grid of one line is that line",
    r"linear\._q?gemm: '\*': \* becomes": "there is no bias",
    r"linear\._(per|quantised|qgemm): '[^A-Z]*( -> M N)?': \* becomes": "numbers have no axes",
    r"reduce\.one_hot: False for True'": "the group of what is picked is inexact already",
    r"pool\._quantised(_mean)?: ', \*, \*, \*, \* -> ': \* becomes": "numbers have no axes",
    r"pool\._quantised: 'N C \*': N and C swapped": "a letter is but a name",
    r"elementwise\.dropout: 0 becomes 1": "both outputs have the axes of the input",
    r"elementwise\._asked: `0 <= stored.item\(\) < len\(ids\)` compared by LtE at 1": "a position "
    "past the end is never met, and stays past it",
    r"linear\._qgemm: 4 becomes 5": "onnxruntime wants as many zero points as scales",
    r"attention\._(linear|projected): ' -> .*': [st] becomes [ST]": "axes that no input has are "
    "whole",
    r"attention\._resize_rotary: 0 becomes 1 in `node.op.attr": "the size that turns is then "
    "written out, which is right too",
    r"attention\._resize: 0 becomes 1 in `node.new_in": "queries and keys have one size",
    r"attention\._resize: 1 becomes 2 in `_counted": "values have the heads of the keys",
    r"attention\._macs: (1 becomes 2|-2 becomes -3)": "keys and values have the same steps, before "
    "and after",
    r"attention\._heads: (1 becomes 2|0 becomes 1)": "of four axes only the heads of the keys are "
    "asked",
    r"attention\._rotary: '\*': \* becomes": "there are no positions",
    r"attention\._projected: 1 becomes 2 in `\(1,\)`": "a size of one broadcasts",
    r"attention\._resize_projected: 3 becomes 4": "the scale is then written out where "
    "it is what it stands for",
    r"control\._scanned: 1 becomes 2 in `max": "what is scanned has axes",
    r"attention\._projected: '\*': \* becomes": "numbers have no axes",
    r"attention\._resize_projected: `3 \* count.* with FloorDiv": "the scale is then written out "
    "where it is what it stands for",
    r"recurrent\._zero: `speaking <= _SILENT` compared": "no node has all six",
    r"blocked\..*: '\((I u 2|P r [bc])\)': (u and 2|r and [bc]) swapped": "the inside of a unit "
    "has no order",
    r"blocked\..*: -1 becomes -2": "any number below zero means the rest",
    r"blocked\..*: '\((2 )?[IC] v\)': (v becomes V|[IC] and v swapped)": "a unit is one byte there",
    r"blocked\.(_experts|_expert_numbers|QMoE): (3 becomes 4 in `(k|position) // 3|.* without `8 % "
    "bits)": "the same for two, four and eight bits, and for three matrices",
    r"blocked\.(_blocks|_expert_sizes|gather|_expert_macs): 8 becomes 9": "the same for two, four "
    "and eight bits",
    r"blocked\.(_expert_sizes|_expert_packed): 1[123] becomes": "zero points of all matrices come "
    "together",
    r"blocked\._experts: `op.has\(k\) and op.activation": "what is absent is not made",
    r"blocked\._resize_experts: (`picked > |1 becomes 2 in `node)": "the number of all of them is "
    "then written out, which is right too",
    r"blocked\._bnb4(_numbers)?: 1 becomes 2 in `(op|node).attr": "any number but zero is yes",
    r"blocked\.gather: without `op.lock": "kept whole by the pattern, only without the reason",
    r"blocked\.GatherBlockQuantized: 8 becomes 9": "no table has as many axes",
    r"control\.if_: without `(if not op.node.bodies|return _alone)": "then it is refused, which "
    "locks the same",
    r"control\.loop: 0 becomes 1 in `first > 0": "a Loop gives two inputs before its states",
    r"contrib_attention\..*: '(\),| ->) .*: (u becomes U|s becomes S|2 becomes 3)": "axes that no "
    "input has are whole",
    r"contrib_attention\._projected: ', \*, ': \* becomes": "a list of lengths holds no weight",
    r"contrib_attention\._(grouped|multi_head|rotary): '\*': \* becomes": "numbers, lists, and "
    "what is absent have no axes that weights have",
    r"contrib_attention\._packed: 't H 3 D, \*, \*, .*\* becomes": "what is absent has no axes",
    r"contrib_attention\._(packed|grouped): 1 becomes 2 in `op.has": "keys and values come "
    "together",
    r"contrib_attention\._resize_projected: 0 becomes 1 in `parts": "keys have the heads of "
    "queries",
    r"contrib_attention\._resize_rotary: 0 becomes 1 in `op.attr": "the number is then written "
    "out, which is right too",
    r"contrib_attention\._projected: `op.has\(4\) or .* without `op.has": "what is remembered "
    "comes back",
    r"contrib_attention\._inexact: 14 becomes 15": "queries and keys are scaled together",
    r"contrib_attention\._macs: 1 becomes 2 in `(op|len)": "keys and values come "
    "together, before and after",
    r"contrib_attention\._multi_head: (6 becomes 7 in `op.has|1 becomes 2 in `op)": "the same",
    r"contrib_attention\._(turned: 7 becomes 8|turns: 2 becomes 3 in `op.shape)": "as many sines "
    "as cosines",
    r"contrib_attention\._grouped: 'B h \*': h (becomes|and)": "an axis of one is never "
    "removed, and steps are whole",
    r"contrib_attention\._kept_keys: `q.* compared by Gt": "a head has eight elements at least",
    r"contrib_attention\._turned: '\*': \* becomes": "nothing is turned, and there are no angles",
    r"blocked\.gather: `at > picked` compared by GtE": "the two axes are not the same there",
    r"blocked\.gather: without `(if picked == at|return follow)": "then it is refused, which locks "
    "the same",
    r"contrib_attention\._turned: 'D 8 2': 8 and 2 swapped": "the inside of a unit has no order",
    r"contrib_attention\._grouped: ' -> \*, \*, \*, \*': \* becomes": "axes that no input has",
    r"contrib_attention\._grouped: .*' -> \*, \*, \*, \*'` with Sub": "then it is refused, "
    "which locks the same",
    r"recurrent\._dynamic: ' -> .*': (s becomes|d becomes|s and d)": "axes that no input "
    "has are whole",
    r"norm\.qlinear_softmax: 13 becomes 14": "onnxruntime wants opset to be given",
    r"conv\.module: 0 becomes 1 in `\(0,\)`''": "a bias has one axis",
    r"blocked\._experts: `(odd or made.* without `(inner|op.shape)|op.shape\(5)": "then it is "
    "refused, which locks the same",
    r"blocked\._bnb4: (.*without `len|1 becomes 2 in `(len|op.shape))": "the same",
    r"blocked\.(n_bits|gather): '\*, \*, .*: \* becomes": "the same",
    r"blocked\._experts: (' -> \*'|'\*'): \* becomes": "axes that no input has, and what is absent",
    r"blocked\._experts: 6 becomes 7": "more than there are inputs",
    r"blocked\._expert_sizes: .* without `block`": "r is asked of blocks alone",
    r"blocked\._table_numbers: .* without `node": "nothing comes behind the zero points",
    r"experts\._moe: ' I -> \* C': \* becomes": "axes that no input has are whole",
    r"experts\._inexact: 'E C': E and C swapped": "a list of letters has no order",
    r"experts\._resize: (`picked > |1 becomes 2 in `node)": "the number of all of them is then "
    "written out, which is right too",
    r"elementwise\.BitwiseOr \.\.\.: BitShift with zero='0'": "right, and of no use: bits are not "
    "summed",
    r"elementwise\.dropout: `len\(outputs\) > 1` compared": "one output, and no mask",
    r"elementwise\..*: '(\.\.\., )+\*.*\* becomes": "numbers have no axes",
}


def reason(name: str) -> str:
    """Why a mutant cannot be told from the original, or nothing."""
    import re

    return next((why for key, why in EQUIVALENT.items() if re.match(key, name)), "")
