"""What a run would do and cost, by arithmetic alone; no ComfyUI.

operations  floating-point operations of layers
kinds       the blocks of a model on a grid: branches and their windows
advice      sizes that a rule cuts badly, and the nearest good ones
report      all of it for one video, in sentences
picture     the same as a drawing
"""
