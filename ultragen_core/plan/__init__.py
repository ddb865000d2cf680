"""What a run would do and cost, by arithmetic alone; no ComfyUI.

flops    floating-point operations of layers
memory   peak memory of an evaluation, and how many tokens fit at a time
split    what several GPUs compute of a video, and exchange
speed    times, from a measurement of the card
report   the whole plan of one video, in sentences
picture  the same as a drawing
"""
