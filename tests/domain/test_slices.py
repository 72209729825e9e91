from app.domain.slices import masks, of_prompt


def test_slices_leave_out_what_a_prompt_does_not_have() -> None:
    assert of_prompt("safety", "hard", None, "train") == {"domain": "safety", "difficulty": "hard", "split": "train"}
    found = masks({"domain": ["b", "a", "", "b"], "split": ["t", "t", "t", "h"]})
    assert {key: mask.tolist() for key, mask in found.items()} == {
        ("domain", "a"): [False, True, False, False],
        ("domain", "b"): [True, False, False, True],
        ("split", "h"): [False, False, False, True],
        ("split", "t"): [True, True, True, False],
    }
