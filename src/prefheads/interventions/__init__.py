"""The pass with branches: what attention functions are shown to, and what rows it runs.

A model is probed once (``layout``), its attention is intercepted (``intercept``, ``routing``,
``hooks``), and a plan (``plan``) says which rows leave the shared one where, and with which gains
(``branching``). Keys and values of a prompt are computed once (``shared_prompt``, ``cache``).
"""
