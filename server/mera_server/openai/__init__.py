"""OpenAI's completions, chats and models over the same plans and the same engine as `POST /generate`.

A body (`schemas`) names a model (`models`) and prompts (`prompts`); both make one `Ask` per choice (`asks`), and what comes of it is
told in OpenAI's words, at once (`replies`) or as it comes (`chunks`). The routes are in `mera_server.routes.openai`.
"""
