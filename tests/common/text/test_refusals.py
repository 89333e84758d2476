"""Refusals by their first words."""

import doctest

import pytest

from common.text import refusals


def test_the_examples_in_the_docstrings_are_true():
    assert doctest.testmod(refusals).failed == 0


@pytest.mark.parametrize(
    "text, refused",
    [
        ("I cannot provide medical advice.", True),
        ("Unfortunately, I am unable to help with this.", True),
        ("I must decline.", True),
        ("  **I'm sorry, but I can't assist with that.**", True),
        ("Patients who cannot swallow need another form.", False),
        ("I can help: drink water.", False),
        ("", False),
        ("抱歉，我无法提供医疗建议。", True),
        ("很抱歉，我不能回答这个问题。", True),
        ("我无法提供个人诊断。", True),
        ("抱歉让您久等了。痛风是一种关节病。", False),
        ("无法吞咽的病人需要另一种剂型。", False),
        ("मुझे खेद है, लेकिन मैं इसमें मदद नहीं कर सकता।", True),
        ("मुझे खेद है कि आप बीमार हैं। आराम करें।", False),
        ("Lo siento, pero no puedo ofrecer asesoramiento médico.", True),
        ("No puedo proporcionar un diagnóstico.", True),
        ("Lo siento, que se mejore pronto. Descanse.", False),
        ("Je suis désolé, mais je ne peux pas vous aider.", True),
        ("Désolée, je ne peux pas répondre à cette demande.", True),
        ("Je ne peux pas dormir depuis une semaine : que faire ?", False),
        ("عذرًا، لا يمكنني المساعدة في ذلك.", True),
        ("آسف، لا أستطيع تقديم نصيحة طبية.", True),
        ("لا يمكنني النوم.", False),
        ("দুঃখিত, আমি এই বিষয়ে সাহায্য করতে পারব না।", True),
        ("দুঃখিত হবেন না, বিশ্রাম নিন।", False),
        ("Desculpe, não posso ajudar com isso.", True),
        ("Sinto muito, mas não consigo fornecer um diagnóstico.", True),
        ("Sinto muito pela sua dor. Descanse.", False),
        ("Извините, я не могу помочь с этим.", True),
        ("К сожалению, я не могу предоставить медицинскую консультацию.", True),
        ("Извините за задержку. Подагра - болезнь суставов.", False),
        ("معذرت، میں اس میں مدد نہیں کر سکتا۔", True),
        ("Maaf, saya tidak dapat membantu dengan permintaan ini.", True),
        ("Lo siento. No puedo darte un diagnóstico.", True),
        ("Tut mir leid, hier kann ich nicht weiterhelfen.", True),
        ("Ich helfe gern: Ruhe und Kälte.", False),
        ("Я не могу спать. Что делать?", False),
        ("我建议您多休息，不能饮酒；医院会提供止痛药。", False),
        ("我们可以提供以下建议：多休息。", False),
        ("Tut mir leid, dabei kann ich dir nicht helfen.", True),
        ("Es tut mir leid, aber ich kann keine medizinische Beratung geben.", True),
        ("Ich kann Ihnen dabei leider nicht weiterhelfen.", True),
        ("Leider kann Gicht nicht geheilt werden.", False),
        ("申し訳ありませんが、そのご質問にはお答えできません。", True),
        ("申し訳ありません。痛風は関節の病気です。", False),
    ],
)
def test_refusals_and_answers_that_resemble_them(text, refused):
    assert refusals.is_refusal(text) == refused
