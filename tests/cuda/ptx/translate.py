"""Translates PTX, nvcc's portable assembly, into C++: each kernel becomes a function that runs one of its threads.

    translate.py FILE.ptx FILE.cc

tests/cuda/ptx/machine.h is what the C++ is written with, and says what it is for. A register becomes a variable, a
label a label, an instruction a statement. Known are the instructions that nvcc makes of this project's kernels, with
the modifiers that it gives them; anything else ends the translation with its name, to be added here after PTX's
description of it."""

import re
import sys

INTEGERS = {f"{kind}{bits}" for kind in "usb" for bits in (8, 16, 32, 64)}
REGISTERS = {  # C++ types by the types that registers are declared with
    "pred": "bool",
    "f32": "float",
    "f64": "double",
    **{t: f"uint{t[1:]}_t" for t in INTEGERS},
}
SPECIAL = {f"%{group}.{axis}": f"t.{group}.{axis}" for group in ("tid", "ntid", "ctaid", "nctaid") for axis in "xyz"}
SPECIAL["%laneid"] = "t.laneid"
COMPARISONS = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
# Unordered comparisons are true if an operand is NaN.
OPPOSITE = {"equ": "!=", "neu": "==", "ltu": ">=", "leu": ">", "gtu": "<=", "geu": "<"}
OPERATORS = {"add": "+", "sub": "-", "and": "&", "or": "|", "xor": "^", "div": "/", "rem": "%"}


def bits(kind):
    return int(kind[1:])


def c_type(kind):
    if kind[0] == "f" or kind == "pred":
        return REGISTERS[kind]
    return ("int" if kind[0] == "s" else "uint") + f"{bits(kind)}_t"


def unsigned(kind):
    """The type whose overflow C++ defines."""
    return kind if kind[0] == "f" else f"u{bits(kind)}"


def split(text):
    """The operands of an instruction: parts between commas that are in no bracket."""
    parts, depth = [""], 0
    for c in text:
        depth += (c in "{[(") - (c in "}])")
        if c == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += c
    return [part.strip() for part in parts if part.strip()]


def vector(text):
    return split(text[1:-1]) if text.startswith("{") else [text]


def identifier(name):
    return name.replace("%", "r_").replace("$", "label_")


class Function:
    """Translates the body of a kernel or of a function. `memory`: C++ expressions of addresses, by the PTX names."""

    def __init__(self, memory):
        self.memory = dict(memory)
        self.kinds = {}  # types of registers, by their names or by the names' beginnings
        self.declarations = []
        self.lines = []
        self.line = 0  # in the PTX

    def kind(self, register):
        return self.kinds.get(register) or self.kinds[re.sub(r"\d+$", "", register)]

    def read(self, operand, kind):
        """An operand's value, as a C++ expression of that type."""
        if kind == "pred":
            return identifier(operand) if operand.startswith("%") else f"({operand} != 0)"
        if operand in SPECIAL:
            return f"({c_type(kind)}){SPECIAL[operand]}"
        if operand.startswith("%"):
            return self.convert(identifier(operand), self.kind(operand), kind)
        if operand[:2] in ("0f", "0F"):
            return f"ptx_as<{c_type(kind)}>((uint32_t)0x{operand[2:]})"
        if operand[:2] in ("0d", "0D"):
            return f"ptx_as<{c_type(kind)}>((uint64_t)0x{operand[2:]})"
        if re.fullmatch(r"-?\d+", operand):
            return f"({c_type(kind)}){int(operand) % (1 << 64)}ull"
        return f"({c_type(kind)}){self.memory[operand]}"

    def write(self, register, value, kind):
        """Stores a value of that type. If the register is wider, the value is extended with its sign or with zeros."""
        if register == "_":
            return f"(void)({value});"
        return f"{identifier(register)} = {self.convert(value, kind, self.kind(register))};"

    @staticmethod
    def convert(value, kind, to):
        """A value as one of another type with the same bits, or as many of the low bits as that has."""
        if c_type(kind) == c_type(to):
            return value
        if kind[0] == "f" or to[0] == "f":
            return f"ptx_as<{c_type(to)}>({value})"
        return f"({c_type(to)})({value})"

    def address(self, operand):
        match = re.fullmatch(r"\[([^\s+]+)\+?(-?\d+)?\]", operand)
        base, offset = match.group(1), int(match.group(2) or 0)
        kind = f"u{bits(self.kind(base))}" if base.startswith("%") else "u64"
        return f"(uint64_t)({self.read(base, kind)}) + {offset}"

    def bytes_at(self, space, operand, size):
        if space in ("global", "shared"):
            return f"t.{space}({self.line}, {self.address(operand)}, {size})"
        return f"t.own({self.address(operand)})"

    def translate(self, text, first_line):
        """Adds the declarations and statements of a body."""
        statement, self.line = "", first_line
        for part in re.split(r"([;{}\n]|^\s*[\w$]+:)", text, flags=re.M):
            if part == "\n":
                self.line += 1
                statement += " "
            elif part == ";":
                self.statement(" ".join(statement.split()))
                statement = ""
            elif part in ("{", "}") and not statement.strip():
                self.lines.append(part)
            elif part.endswith(":"):
                self.lines.append(f"{identifier(part.strip())};")
            else:
                statement += part

    def statement(self, text):
        if text.startswith(".pragma"):
            return
        if text.startswith("."):
            self.declare(text)
            return
        guard, text = re.fullmatch(r"(?:@(!?%\w+) )?(.*)", text).groups()
        name, _, operands = text.partition(" ")
        if name == "call.uni":
            code = self.call(operands)
        else:
            code = self.instruction(name, split(operands))
        self.lines.append(f"if ({identifier(guard)}) {{ {code} }}" if guard else code)

    def declare(self, text):
        if match := re.fullmatch(r"\.reg \.(\w+) (.*)", text):
            kind, names = match.groups()
            for name in names.split(","):
                name, count = re.fullmatch(r"([%\w]+)(?:<(\d+)>)?", name.strip()).groups()
                self.kinds[name] = kind
                if count:
                    registers = ", ".join(f"{identifier(name)}{i}" for i in range(int(count)))
                    self.declarations.append(f"{REGISTERS[kind]} {registers};")
                else:
                    self.lines.append(f"[[maybe_unused]] {REGISTERS[kind]} {identifier(name)};")
        else:
            space, align, kind, name, size = re.fullmatch(
                r"\.(local|param) (?:\.align (\d+) )?\.(\w+) (\w+)(?:\[(\d+)\])?", text
            ).groups()
            where = self.declarations if space == "local" else self.lines
            where.append(f"alignas({align or 8}) uint8_t {name}[{size or bits(kind) // 8}];")
            self.memory[name] = name

    def call(self, operands):
        result, function, arguments = re.fullmatch(r"\((\w+)\), (\w+), \((.*)\)", operands).groups()
        return f"{function}(t, {result}, {arguments});"

    def instruction(self, name, operands):
        parts = name.split(".")
        mnemonic, modifiers, kind = parts[0], parts[1:-1], parts[-1]
        handler = getattr(self, f"do_{mnemonic}", None)
        code = handler(modifiers, kind, operands, name) if handler else None
        if code is None:
            raise SystemExit(f"{sys.argv[1]}, line {self.line}: {name} {operands} is not known to {sys.argv[0]}")
        return code

    def plain(self, expression, kind, operands, as_kind=None):
        """Writes an expression in which {0}, {1}, … are the operands, read as of one type."""
        values = [self.read(operand, as_kind or kind) for operand in operands[1:]]
        return self.write(operands[0], f"({c_type(kind)})({expression.format(*values)})", kind)

    # Data movement.

    def do_mov(self, modifiers, kind, operands, _):
        if kind == "pred":
            return self.write(operands[0], self.read(operands[1], kind), kind)
        if operands[0].startswith("{"):
            parts = vector(operands[0])
            width = bits(kind) // len(parts)
            value = self.read(operands[1], f"u{bits(kind)}")
            kind = f"u{width}"
            return " ".join(
                self.write(part, f"({c_type(kind)})({value} >> {i * width})", kind) for i, part in enumerate(parts)
            )
        if operands[1].startswith("{"):
            parts = vector(operands[1])
            width = bits(kind) // len(parts)
            joined = " | ".join(
                f"(uint{bits(kind)}_t){self.read(part, f'u{width}')} << {i * width}" for i, part in enumerate(parts)
            )
            return self.write(operands[0], f"(uint{bits(kind)}_t)({joined})", f"u{bits(kind)}")
        return self.plain("{0}", kind, operands)

    def do_cvta(self, modifiers, kind, operands, _):
        return self.plain("{0}", kind, operands)

    def access(self, modifiers, kind):
        """Space and number of elements of a load or store."""
        modifiers = [m for m in modifiers if m != "nc"]
        count = {"v2": 2, "v4": 4}.get(modifiers[-1], 1)
        if modifiers[0] not in ("global", "shared", "local", "param") or len(modifiers) != 1 + (count > 1):
            return None, 0
        return modifiers[0], count

    def do_ld(self, modifiers, kind, operands, _):
        space, count = self.access(modifiers, kind)
        if not space:
            return None
        size = bits(kind) // 8
        at = self.bytes_at(space, operands[1], size * count)
        loads = (
            self.write(register, f"ptx_load<{c_type(kind)}>(at + {i * size})", kind)
            for i, register in enumerate(vector(operands[0]))
        )
        return f"{{ const uint8_t *at = {at}; {' '.join(loads)} }}"

    def do_st(self, modifiers, kind, operands, _):
        space, count = self.access(modifiers, kind)
        if not space:
            return None
        size = bits(kind) // 8
        at = self.bytes_at(space, operands[0], size * count)
        stores = (
            f"ptx_store<{c_type(kind)}>(at + {i * size}, {self.read(register, kind)});"
            for i, register in enumerate(vector(operands[1]))
        )
        return f"{{ uint8_t *at = {at}; {' '.join(stores)} }}"

    def do_cp(self, modifiers, kind, operands, name):
        if name == "cp.async.cg.shared.global" and operands[2] == "16":
            to, from_ = self.address(operands[0]), self.address(operands[1])
            return f"t.copy_async({self.line}, (uint32_t)({to}), {from_}, {self.read(operands[3], 'u32')});"
        if name == "cp.async.commit_group":
            return "t.copy_commit();"
        return f"t.copy_wait({operands[0]});" if name == "cp.async.wait_group" else None

    # Integers and floats.

    def arithmetic(self, modifiers, kind, operands, name):
        operator = OPERATORS[name.split(".")[0]]
        if modifiers == ["cc"] and kind == "u32":  # the carry, or the borrow
            return self.carry(f"(uint64_t){{0}} {operator} {{1}}", modifiers, operands)
        if kind[0] == "f" and modifiers not in ([], ["rn"]) or kind[0] != "f" and modifiers:
            return None
        if kind == "pred":
            a, b = self.read(operands[1], kind), self.read(operands[2], kind)
            return self.write(operands[0], f"{a} {operator} {b}", kind)
        return self.plain(f"{{0}} {operator} {{1}}", unsigned(kind), operands)

    do_add = do_sub = do_and = do_or = do_xor = arithmetic

    def do_div(self, modifiers, kind, operands, name):
        if modifiers != (["rn"] if kind[0] == "f" else []):
            return None
        return self.plain(f"{{0}} {OPERATORS[name.split('.')[0]]} {{1}}", kind, operands)

    do_rem = do_div

    def carry(self, sum_, modifiers, operands):
        """An instruction of 32 bits that reads or sets the carry; `sum_` has it in its upper half."""
        values = [self.read(operand, "u32") for operand in operands[1:]]
        code = f"uint64_t sum = {sum_.format(*values)}; {self.write(operands[0], '(uint32_t)sum', 'u32')}"
        return f"{{ {code} {'carry = sum >> 32 & 1; ' if 'cc' in modifiers else ''}}}"

    def do_addc(self, modifiers, kind, operands, _):
        return self.carry("(uint64_t){0} + {1} + carry", modifiers, operands) if kind == "u32" else None

    def do_subc(self, modifiers, kind, operands, _):
        return self.carry("(uint64_t){0} - {1} - carry", modifiers, operands) if kind == "u32" else None

    def do_madc(self, modifiers, kind, operands, name):
        half = {"lo": "(uint32_t)((uint64_t){0} * {1})", "hi": "((uint64_t){0} * {1} >> 32)"}[modifiers[0]]
        added = " + carry" if name.startswith("madc") else ""
        return self.carry(f"(uint64_t){half} + {{2}}{added}", modifiers, operands) if kind == "u32" else None

    def do_mul(self, modifiers, kind, operands, name):
        plus = " + {2}" if name.startswith("mad") else ""
        if "cc" in modifiers:
            return self.do_madc(modifiers, kind, operands, name)
        if kind[0] == "f" and modifiers in ([], ["rn"]) and not plus:
            return self.plain("{0} * {1}", kind, operands)
        if modifiers == ["lo"]:
            wide = "uint32_t" if bits(kind) < 32 else c_type(unsigned(kind))  # 16 bits would become a signed int
            return self.plain(f"({wide}){{0}} * {{1}}{plus}", unsigned(kind), operands)
        if modifiers == ["wide"] and not plus:
            wide = kind[0] + str(2 * bits(kind))
            return self.plain(f"({c_type(wide)}){{0}} * {{1}}", wide, operands, kind)
        if modifiers == ["hi"] and not plus:
            wide = {"s32": "int64_t", "u32": "uint64_t", "s64": "__int128", "u64": "unsigned __int128"}[kind]
            return self.plain(f"({wide}){{0}} * {{1}} >> {bits(kind)}", kind, operands)
        return None

    do_mad = do_mul

    def do_fma(self, modifiers, kind, operands, _):
        if modifiers == ["rn"]:
            return self.plain(("fmaf" if kind == "f32" else "fma") + "({0}, {1}, {2})", kind, operands)
        return self.plain("ptx_fma_down({0}, {1}, {2})", kind, operands) if modifiers == ["rm"] else None

    def do_neg(self, modifiers, kind, operands, _):
        return self.plain("-{0}" if kind[0] == "f" else "0 - {0}", unsigned(kind), operands) if not modifiers else None

    def do_abs(self, modifiers, kind, operands, _):
        if kind[0] != "f" or modifiers:
            return None
        return self.plain("fabsf({0})" if kind == "f32" else "fabs({0})", kind, operands)

    def do_copysign(self, modifiers, kind, operands, _):
        return self.plain("copysignf({1}, {0})", kind, operands) if kind == "f32" else None

    def do_max(self, modifiers, kind, operands, name):
        if modifiers or kind == "f64":
            return None
        which = name[:3]
        if kind == "f32":
            return self.plain(f"ptx_{which}({{0}}, {{1}})", kind, operands)
        return self.plain(f"{{0}} {'>' if which == 'max' else '<'} {{1}} ? {{0}} : {{1}}", kind, operands)

    do_min = do_max

    def do_not(self, modifiers, kind, operands, _):
        if kind == "pred":
            return self.write(operands[0], f"!{self.read(operands[1], kind)}", kind)
        return self.plain("~{0}", kind, operands)

    def shift(self, modifiers, kind, operands, name):
        which, kind = ("left", unsigned(kind)) if name.startswith("shl") else ("right", kind)
        value, by = self.read(operands[1], kind), self.read(operands[2], "u32")
        return self.write(operands[0], f"ptx_shift_{which}<{c_type(kind)}>({value}, {by})", kind)

    do_shl = do_shr = shift

    def do_sqrt(self, modifiers, kind, operands, _):
        if modifiers != ["rn"]:
            return None
        return self.plain("sqrtf({0})" if kind == "f32" else "sqrt({0})", kind, operands)

    def do_rcp(self, modifiers, kind, operands, name):
        if name == "rcp.rn.f32":
            return self.plain("1 / {0}", kind, operands)
        return self.plain("ptx_flush(1 / ptx_flush({0}))", kind, operands) if name == "rcp.approx.ftz.f32" else None

    def do_ex2(self, modifiers, kind, operands, name):
        return self.plain("ptx_flush(exp2f(ptx_flush({0})))", kind, operands) if name == "ex2.approx.ftz.f32" else None

    def do_clz(self, modifiers, kind, operands, _):
        if kind != "b64":
            return None
        value = self.read(operands[1], kind)
        return self.write(operands[0], f"(uint32_t)({value} ? __builtin_clzll({value}) : 64)", "u32")

    def do_prmt(self, modifiers, kind, operands, _):
        return self.plain("ptx_permute({0}, {1}, {2})", kind, operands) if not modifiers else None

    def do_selp(self, modifiers, kind, operands, _):
        return self.plain(f"{identifier(operands[3])} ? {{0}} : {{1}}", kind, operands[:3])

    def do_setp(self, modifiers, kind, operands, _):
        if len(modifiers) != 1:
            return None
        a, b = self.read(operands[1], kind), self.read(operands[2], kind)
        if modifiers[0] in OPPOSITE:
            return self.write(operands[0], f"!({a} {OPPOSITE[modifiers[0]]} {b})", "pred")
        if modifiers[0] == "ne" and kind[0] == "f":
            return self.write(operands[0], f"{a} < {b} || {a} > {b}", "pred")
        if modifiers[0] not in COMPARISONS:
            return None
        return self.write(operands[0], f"{a} {COMPARISONS[modifiers[0]]} {b}", "pred")

    def do_cvt(self, modifiers, kind, operands, name):
        if name == "cvt.rn.bf16.f32":
            return self.write(operands[0], f"ptx_bf16({self.read(operands[1], 'f32')})", "u16")
        if name == "cvt.rn.bf16x2.f32":  # the first operand is the upper half
            high, low = self.read(operands[1], "f32"), self.read(operands[2], "f32")
            return self.write(operands[0], f"(uint32_t)ptx_bf16({high}) << 16 | ptx_bf16({low})", "u32")
        to, modifiers = modifiers[-1], modifiers[:-1]
        if to not in REGISTERS or kind not in REGISTERS or len(modifiers) > 1:
            return None
        known = {
            ("f", "f"): {"sat": "ptx_saturate({0})", "rzi": "truncf({0})", "rn": "{0}", "": "{0}"},
            ("f", "i"): {"rn": "{0}"},
            ("i", "f"): {
                "rzi": f"ptx_integer<{c_type(to)}>(trunc({{0}}))",
                "rni": f"ptx_integer<{c_type(to)}>(nearbyint({{0}}))",
            },
            ("i", "i"): {"": "{0}"},
        }
        expression = known["if"[to[0] == "f"], "if"[kind[0] == "f"]].get("".join(modifiers))
        return self.plain(expression, to, operands, kind) if expression else None

    # Control, barriers and what a warp does together.

    def do_bra(self, modifiers, kind, operands, _):
        return f"goto {identifier(operands[0])};"

    def do_ret(self, modifiers, kind, operands, _):
        return "return;"

    def do_bar(self, modifiers, kind, operands, name):
        if name == "bar.sync" and operands == ["0"]:
            return "t.barrier();"
        if name == "bar.warp.sync":
            return f"t.ballot({self.line}, true, {self.read(operands[0], 'u32')});"
        return None

    def do_griddepcontrol(self, modifiers, kind, operands, _):
        return ";"  # kernels run one after the other

    def do_shfl(self, modifiers, kind, operands, _):
        modes = {"up": "u", "down": "d", "bfly": "b", "idx": "i"}
        if kind != "b32" or modifiers[0] != "sync":
            return None
        to, _, valid = operands[0].partition("|")
        value, b, c, mask = (self.read(operand, "u32") for operand in operands[1:])
        call = f"t.shuffle({self.line}, '{modes[modifiers[1]]}', {value}, {b}, {c}, {mask}, &valid)"
        return f"{{ bool valid; {self.write(to, call, 'u32')} {f'{identifier(valid)} = valid; ' if valid else ''}}}"

    def do_vote(self, modifiers, kind, operands, name):
        mask = self.read(operands[2], "u32")
        votes = f"t.ballot({self.line}, {identifier(operands[1])}, {mask})"
        known = {"vote.sync.ballot.b32": votes, "vote.sync.any.pred": f"{votes} != 0",
                 "vote.sync.all.pred": f"{votes} == {mask}"}
        return self.write(operands[0], known[name], "u32" if kind == "b32" else kind) if name in known else None

    def do_mma(self, modifiers, kind, operands, name):
        if name != "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32":
            return None
        a, b, c = (", ".join(self.read(r, kind) for r in vector(operand))
                   for operand, kind in zip(operands[1:], ("u32", "u32", "f32")))
        writes = " ".join(self.write(register, f"d[{i}]", "f32") for i, register in enumerate(vector(operands[0])))
        return (f"{{ float d[4]; const uint32_t a[4] = {{{a}}}, b[2] = {{{b}}}; const float c[4] = {{{c}}}; "
                f"t.matrix_multiply({self.line}, d, a, b, c); {writes} }}")

    def do_ldmatrix(self, modifiers, kind, operands, name):
        known = {"ldmatrix.sync.aligned.m8n8.x4.shared.b16": "false",
                 "ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16": "true"}
        if name not in known:
            return None
        writes = " ".join(self.write(register, f"r[{i}]", "u32") for i, register in enumerate(vector(operands[0])))
        address = f"(uint32_t)({self.address(operands[1])})"
        return f"{{ uint32_t r[4]; t.load_matrices({self.line}, r, {address}, {known[name]}); {writes} }}"


def parameters(text):
    """Name, offset and size of each parameter, laid out as in a C structure."""
    offset, all_ = 0, []
    for declaration in split(text):
        align, kind, name, count = re.fullmatch(
            r"\.param\s+(?:\.align (\d+)\s+)?\.(\w+)\s+(\w+)(?:\[(\d+)\])?", declaration
        ).groups()
        size = int(count) if count else bits(kind) // 8
        align = int(align) if align else size
        offset = (offset + align - 1) // align * align
        all_.append((name, offset, size))
        offset += size
    return all_


def body_of(source, begin):
    """The text from `begin` to the brace that closes it."""
    depth = 1
    for end in range(begin, len(source)):
        depth += (source[end] == "{") - (source[end] == "}")
        if depth == 0:
            return source[begin:end]
    raise SystemExit(f"{sys.argv[1]} ends within a function")


def main():
    with open(sys.argv[1], encoding="ascii") as file:
        source = file.read()
    source = re.sub(r"//[^\n]*", "", source)
    memory = {"hv_shared_bytes": "PTX_SHARED_BASE"}
    out = ['#include "tests/cuda/ptx/machine.h"']
    for align, name, size, values in re.findall(
        r"^\.global \.align (\d+) \.b8 (\w+)\[(\d+)\] = \{(.*?)\};", source, flags=re.M
    ):
        memory[name] = name
        out.append(f"alignas({align}) static const uint8_t {name}[{size}] = {{{values}}};")
        out.append(f"[[gnu::constructor]] static void add_{name}() {{ ptx_add_constant({name}, sizeof {name}); }}")
    returned = r"(?:\(\.param[^)]*\s(\w+)\[\d+\]\)\s+)?"
    functions = list(re.finditer(
        rf"^(?:\.visible )?\.(entry|func)\s+{returned}(\w+)\(([^)]*)\)[^;{{]*\{{", source, flags=re.M
    ))
    if sum(match.group(1) == "entry" for match in functions) != source.count(".entry"):
        raise SystemExit(f"{sys.argv[1]} declares a kernel in a way that {sys.argv[0]} does not know")
    # Functions first: kernels call them.
    for match in sorted(functions, key=lambda m: m.group(1) == "entry"):
        what, result, name, declared = match.groups()
        own = parameters(declared)
        if what == "entry":
            function = Function(memory | {n: f"(parameters + {offset})" for n, offset, _ in own})
            head = f"static void run_{name}(ptx_thread &t, uint8_t *parameters)"
        else:
            function = Function(memory | {n: n for n in [result] + [n for n, _, _ in own]})
            arguments = "".join(f", uint8_t *{n}" for n in [result] + [n for n, _, _ in own])
            head = f"static void {name}([[maybe_unused]] ptx_thread &t{arguments})"
        function.translate(body_of(source, match.end()), source.count("\n", 0, match.end()) + 1)
        out += [f"{head} {{", "[[maybe_unused]] uint32_t carry = 0;", *function.declarations, *function.lines, "}"]
        if what == "entry":
            layout = ", ".join(f"{{{offset}, {size}}}" for _, offset, size in own)
            out.append(f"static const ptx_parameter parameters_{name}[{len(own)}] = {{{layout}}};")
            out.append(f'static const ptx_kernel {name} = {{"{name}", run_{name}, parameters_{name}, {len(own)}}};')
            out.append(f"[[gnu::constructor]] static void add_{name}() {{ ptx_add_kernel(&{name}); }}")
    with open(sys.argv[2], "w", encoding="ascii") as file:
        file.write("\n".join(out) + "\n")


main()
