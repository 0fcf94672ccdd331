"""The settings, read strictly.

- `settings`: every setting, with its type and its default; `load` reads and checks them;
- `environment`, `envfile`: where they are read, which is the environment, completed by `.env`;
- `values`, `clock`, `addresses`, `alerts`: what the text of a setting means, or what is wrong with it;
- `places`: folders and URLs;
- `errors`: the error of a setting.
"""
