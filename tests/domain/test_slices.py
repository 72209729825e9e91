from app.domain.slices import of_prompt


def test_slices_leave_out_what_a_prompt_does_not_have() -> None:
    assert of_prompt("safety", "hard", None, "train") == {"domain": "safety", "difficulty": "hard", "split": "train"}
