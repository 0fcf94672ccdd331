"""A local Customer.io, in memory.

- `server`: HTTP; `track_api` parses the calls, and checks them;
- `workspace`: the people, and how calls change them; `people` is one of them;
- `pages`: the people as web pages, in the `layout` of all.
"""
