"""The sensors of a house as a tree of topics, and consumers of its branches, with wildcards. No server.

$ python -m examples.topics_sensors
cellar: house.cellar.humidity {'percent': 61}
cellar: house.cellar.temperature {'celsius': 14.0}
alarm: house.kitchen.oven.alarm it burns
warmest: {'kitchen': 23.0, 'cellar': 14.0}
messages: {'house': 6, 'garden': 1}
"""

from redismpx.topics import Topics

topics = Topics()
warmest: dict[str, float] = {}
counts: dict[str, int] = {}


def on_cellar(topic: tuple[str, ...], **values: object) -> None:
    print("cellar:", ".".join(topic), values)


def on_temperature(topic: tuple[str, ...], celsius: float) -> None:
    room = topic[1]
    warmest[room] = max(celsius, warmest.get(room, celsius))


def on_alarm(topic: tuple[str, ...], text: str) -> None:
    print("alarm:", ".".join(topic), text)


def on_everything(topic: tuple[str, ...], **values: object) -> None:
    counts[topic[0]] = counts.get(topic[0], 0) + 1


topics.subscribe("house.cellar", on_cellar)  # house.cellar and everything below it
topics.subscribe("house.=.temperature", on_temperature)  # = is one word: the temperature of each room
topics.subscribe("house.+.alarm", on_alarm)  # + is one word or more: the alarms of all rooms and devices
topics.subscribe("", on_everything)

topics.publish("house.cellar.humidity", percent=61)
for celsius in (20.5, 23.0, 21.5):
    topics.publish("house.kitchen.temperature", celsius=celsius)
topics.publish(("house", "cellar", "temperature"), celsius=14.0)  # a tuple is the same as words with dots
topics.publish("house.kitchen.oven.alarm", text="it burns")
topics.publish("garden.temperature", celsius=9.0)  # outside: on_everything alone
print("warmest:", warmest)
print("messages:", counts)
