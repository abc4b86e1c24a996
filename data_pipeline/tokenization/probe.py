"""Texts on which two forms of one tokenizer are compared: what corpora hold, and what trips them.

Nothing here looks like a special token: those are text to one form and not to the other.
"""

PROBES = (
    "",
    " ",
    "a",
    " A model trains on 1,024 tokens; its loss is 3.14159 (see Fig. 2).",
    "Don't pre-tokenise twice: e.g. U.S.A., naïve café, Größe, coöperate — “quoted” ‘text’…",
    "def f(x_1, *args):  return {'a': x_1 ** 2}  # comment",
    "two  spaces   three, and one at the end ",
    "http://example.org/a?b=c&d=%20e#f user@example.org C:\\path\\file.txt $x^2_i$",
    "HTTPServer iPhone12 covid19 p53 α-helix 10µm ½ ²⁺ № ™",
    "我们在北京大学学习自然语言处理。这是2024年的测试，看看效果如何！",
    "中文和English混合的text，包含GPT-4与數字１２３。",
    "日本語のテキストです。한국어 문장입니다.",
    "Привет, мир! Καλημέρα κόσμε. Xin chào thế giới.",
    "مرحبا بالعالم، שלום עולם, नमस्ते दुनिया, สวัสดีชาวโลก",
    "😀 👩‍👩‍👧‍👦 🇩🇪 ✨ ☃ ➜ █ ▒",
    "aaaaaaaaaaaaaaaa ---------------- ================ !!!!????",
    "supercalifragilisticexpialidocious" * 8,
    "北" * 64,
)
